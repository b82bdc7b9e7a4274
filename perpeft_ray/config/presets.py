"""Named defaults of a study; every value can still be overridden."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

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


REAL_DATA: Mapping[str, Any] = {
    "train.epochs": 24,
    "train.personal_epochs": 48,
    "train.validate_every": 3,
    "train.patience": 4,
    "search.multimodal_weights": (0.5, 0.1),
    "search.peft_lr_scales": (1.0,),
}
"""Settings for real catalogues, by dotted name: trials train until they stop improving."""


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


def with_settings(config: StudyConfig, settings: Mapping[str, Any]) -> StudyConfig:
    """A study with changed settings, by dotted name."""
    parts: dict[str, dict[str, Any]] = {}
    changes: dict[str, Any] = {}
    for name, value in settings.items():
        part, dot, field = name.rpartition(".")
        if dot:
            parts.setdefault(part, {})[field] = value
        else:
            changes[name] = value
    changes |= {part: replace(getattr(config, part), **values) for part, values in parts.items()}
    return replace(config, **changes)
