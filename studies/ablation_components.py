"""What in PerPEFT matters? The rows of the paper's Table 3: PerPEFT and PerPEFT without a part.

Small (LoRA, as the paper, on toyshop; two cores, minutes):

    python studies/ablation_components.py

Full:

    python studies/ablation_components.py --preset full
    python studies/ablation_components.py --preset paper --dataset parquet:PATH --encoder PATH
        --seeds 0 1 2 3 4 --storage /absolute/path

Scientific: method (and variant). Nuisance: the learning rate, which every method chooses by
validation among the same values; groups, rank and conditioning weight, which PerPEFT's search
chooses for all; the seed. Fixed: the rest. `large_global` is one module with the parameters of all
groups' modules together.
"""

from __future__ import annotations

from dataclasses import replace

from perpeft_ray.cli import Question, ask
from perpeft_ray.config import TABLE_3, StudyConfig


def defaults(preset: StudyConfig) -> StudyConfig:
    """Table 3's rows with LoRA; every method takes its own learning rate."""
    return replace(
        preset,
        study="ablation_components",
        methods=("popularity", "item_knn", *TABLE_3),
        peft=replace(preset.peft, variant="lora"),
        search=replace(preset.search, every_method=True),
    )


QUESTION = Question(scientific=("method", "variant"), defaults=defaults)

if __name__ == "__main__":
    ask(QUESTION, __doc__)
