"""Named defaults of a study; every value can still be overridden."""

from __future__ import annotations

from typing import Literal

from perpeft_ray.config import (
    TABLE_2,
    GroupingSettings,
    LossSettings,
    Method,
    ModelSettings,
    PeftSettings,
    SearchSettings,
    StudyConfig,
    TrainSettings,
)

Preset = Literal["toyshop", "full", "paper"]


_ROWS: tuple[Method, ...] = (
    "popularity",
    "item_knn",
    *TABLE_2,
    "without_group_negatives",
    "random_grouping",
)
"""The default methods and the rest of Table 2."""


def preset(name: Preset) -> StudyConfig:
    """`toyshop`: sized for the embedded catalogue on two cores. `full`: five seeds, all rows of
    Table 2 and more of everything. `paper`: the paper's constants.

    `paper` fixes learning rate, rank, number of groups and conditioning weight, so only the variant
    is searched; its weight decay is LoRA's on *sports*.
    Source: the constants of the paper and of its released program.
    """
    if name == "toyshop":
        return StudyConfig()
    if name == "full":
        return StudyConfig(
            seeds=(0, 1, 2, 3, 4),
            methods=_ROWS,
            train=TrainSettings(epochs=12, personal_epochs=24),
            search=SearchSettings(trials=24, every_method=True),
        )
    return StudyConfig(
        methods=_ROWS,
        peft=PeftSettings(rank=4, last_layers=None),
        grouping=GroupingSettings(groups=8),
        loss=LossSettings(conditioning_weight=1.0),
        model=ModelSettings(multimodal_weight=0.5),
        train=TrainSettings(
            lr=1e-4,
            peft_lr_scale=1.0,
            id_lr_scale=1.0,
            weight_decay=1e-4,
            batch_size=16,
            epochs=10,
            personal_epochs=20,
            validate_every=1,
        ),
    )
