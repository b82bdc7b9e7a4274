"""How much does PerPEFT depend on the number of groups, the rank, λ and the learning rate?

Small (LoRA on toyshop, two seeds; two cores, minutes):

    python studies/sensitivity.py

Full:

    python studies/sensitivity.py --preset full --search.ranks 1 2 4 8 16 --search.groups 1 2 4 8 16
        --search.conditioning-weights 0 0.25 0.5 0.75 1 --search.learning-rates 5e-4 1e-3 2e-3 4e-3

A search finds the best setting of each variant by validation. Then each setting in turn takes all
of its values while the others stay fixed. Test is read for every seed, but chooses no value.
Scientific: groups, rank, conditioning weight, learning rate. Nuisance: the seed. Fixed: the rest.
"""

from __future__ import annotations

from dataclasses import replace

from perpeft_ray.cli import Question, ask
from perpeft_ray.config import StudyConfig


def defaults(preset: StudyConfig) -> StudyConfig:
    """PerPEFT with LoRA beside the global module, over more values of every setting."""
    return replace(
        preset,
        study="sensitivity",
        methods=("global", "perpeft"),
        seeds=preset.seeds if len(preset.seeds) > 1 else (0, 1),
        peft=replace(preset.peft, variant="lora"),
        search=replace(
            preset.search,
            ranks=(2, 4, 8),
            groups=(2, 4, 6, 8),
            conditioning_weights=(0.0, 0.5, 1.0),
        ),
    )


QUESTION = Question(
    scientific=("groups", "rank", "conditioning_weight", "learning_rate"),
    defaults=defaults,
    run="perpeft_ray.study.questions:run_sensitivity",
)

if __name__ == "__main__":
    ask(QUESTION, __doc__)
