"""The settings that a study can search: one entry each.

Validation, the command line's choices, the search space, tables and labels read this table. A new
searched setting is an entry here, a field of `TrialConfig` and two of the study's settings: the
value (`given`) and its choices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from perpeft_ray.config.trial import (
    GROUPED_METHODS,
    PEFT_METHODS,
    PERSONAL_METHODS,
    SIMPLE_METHODS,
    Method,
)
from perpeft_ray.config.variants import FACTS, Variant


@dataclass(frozen=True)
class Searchable:
    """A setting that can be given or searched."""

    name: str
    """Field of `TrialConfig`, and column of the results."""
    given: str
    """Dotted setting that fixes it."""
    choices: str
    """Field of `SearchSettings` with the values to choose from."""
    symbol: str
    """Short label in tables and status lines."""
    applies: Callable[[Method, Variant | None], bool]
    """Whether a method with a variant has the setting."""


SEARCHABLE: tuple[Searchable, ...] = (
    Searchable(
        "groups",
        "grouping.groups",
        "groups",
        "G",
        # large_global has the size of all groups' modules together.
        lambda method, _: method in GROUPED_METHODS or method == "large_global",
    ),
    Searchable(
        "rank",
        "peft.rank",
        "ranks",
        "r",
        lambda method, variant: (
            method in PEFT_METHODS and variant is not None and FACTS[variant].rank is not None
        ),
    ),
    Searchable(
        "conditioning_weight",
        "loss.conditioning_weight",
        "conditioning_weights",
        "λ",
        lambda method, _: method in PERSONAL_METHODS and method != "without_group_negatives",
    ),
    Searchable(
        "learning_rate",
        "train.lr",
        "learning_rates",
        "lr",
        lambda method, _: method not in SIMPLE_METHODS,
    ),
    Searchable(
        "multimodal_weight",
        "model.multimodal_weight",
        "multimodal_weights",
        "w",
        lambda method, _: method not in SIMPLE_METHODS and method != "without_mm",
    ),
    Searchable(
        "weight_decay",
        "train.weight_decay",
        "weight_decays",
        "wd",
        lambda method, _: method not in SIMPLE_METHODS,
    ),
    Searchable(
        "peft_lr_scale",
        "train.peft_lr_scale",
        "peft_lr_scales",
        "peft lr ×",
        lambda method, _: method in PEFT_METHODS,
    ),
)
"""Numbers all; besides them the variant can be searched."""

VARIED = tuple(setting.name for setting in SEARCHABLE)
"""Their names."""
