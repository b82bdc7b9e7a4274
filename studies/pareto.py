"""Which settings of PerPEFT are worth their parameters? A search for accuracy and size together.

Small (toyshop; two cores, minutes):

    python studies/pareto.py

Full:

    python studies/pareto.py --preset full --search.trials 48 --search.ranks 1 2 4 8 16
        --search.groups 1 2 4 8 16

Optuna searches for validation NDCG@20 and few trainable parameters at once (two objectives, no
early stopping). The settings on its front are then trained with every seed and test is read; the
front is drawn in `figures/search_front.png` and printed as a table. Scientific: variant, rank,
groups. Nuisance: conditioning weight, learning rate, seed. Fixed: the rest.
"""

from __future__ import annotations

from dataclasses import replace

from perpeft_ray.cli import Question, ask
from perpeft_ray.config import StudyConfig


def defaults(preset: StudyConfig) -> StudyConfig:
    """PerPEFT and the global module, over small and large modules."""
    return replace(
        preset,
        study="pareto",
        methods=("global", "perpeft"),
        search=replace(
            preset.search,
            pareto=True,
            trials=max(preset.search.trials, 12),
            ranks=(1, 4, 16),
            groups=(2, 4, 8),
            conditioning_weights=(0.5, 1.0),
        ),
    )


QUESTION = Question(
    scientific=("variant", "rank", "groups"),
    defaults=defaults,
    run="perpeft_ray.study.questions:run_front",
)

if __name__ == "__main__":
    ask(QUESTION, __doc__)
