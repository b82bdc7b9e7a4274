"""Named defaults of a study; every value can still be overridden."""

from __future__ import annotations

from typing import Literal

from perpeft_ray.config import (
    GroupingSettings,
    LossSettings,
    PeftSettings,
    SearchSettings,
    StudyConfig,
    TrainSettings,
)

Preset = Literal["toyshop", "paper"]


def preset(name: Preset) -> StudyConfig:
    """`toyshop`: sized for the embedded catalogue on two cores. `paper`: the paper's constants.

    The paper's learning rate, rank, number of groups and conditioning weight are given, so only
    the variant is searched; its weight decay is that of LoRA on *sports*.
    Source: the constants of the paper and of its released program.
    """
    if name == "toyshop":
        return StudyConfig()
    return StudyConfig(
        peft=PeftSettings(rank=4),
        grouping=GroupingSettings(groups=8),
        loss=LossSettings(conditioning_weight=1.0),
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
        search=SearchSettings(learning_rates=(1e-4,)),
    )
