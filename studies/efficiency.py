"""What does each method and variant cost in parameters, time and memory?

Small (toyshop; two cores, minutes):

    python studies/efficiency.py

Full:

    python studies/efficiency.py --search.ranks 1 4 16 64 --grouping.groups 8 --train.epochs 5
        --train.personal-epochs 5 --seeds 0 1 2 --dataset parquet:PATH --encoder PATH

There is no search: each method and variant trains at every rank with the first value of every other
setting, alone on the machine, in a fresh process and without other studies' trained results (but
with their hidden states and frozen features). Few epochs suffice for times, so accuracy means
nothing here. Scientific: method, variant, rank. Nuisance: the seed (medians). Fixed: the rest.
"""

from __future__ import annotations

from dataclasses import replace

from perpeft_ray.cli import Question, ask
from perpeft_ray.config import METHODS, SIMPLE_METHODS, StudyConfig


def defaults(preset: StudyConfig) -> StudyConfig:
    """Every method with a cost of its own, for two epochs per stage, one at a time."""
    same = {"random_grouping", "without_group_negatives", *SIMPLE_METHODS}  # cost as perpeft or 0
    return replace(
        preset,
        study="efficiency",
        methods=tuple(method for method in METHODS if method not in same),
        seeds=(0,),
        train=replace(preset.train, epochs=2, personal_epochs=2),
        search=replace(preset.search, ranks=(4,), max_concurrent=1),
    )


QUESTION = Question(
    scientific=("method", "variant", "rank"),
    defaults=defaults,
    run="perpeft_ray.study.questions:run_efficiency",
)

if __name__ == "__main__":
    ask(QUESTION, __doc__)
