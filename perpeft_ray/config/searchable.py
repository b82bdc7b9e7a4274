"""The settings that a study can search: one entry each.

Validation, the search space, a trial's values, status lines, tables, figures and the report's
command line read this table. To add one, write an entry here, its field of `TrialConfig`, and two
options: its value (`given`) and its choices (`choices`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

from perpeft_ray.config.methods import (
    GROUPED_METHODS,
    PEFT_METHODS,
    PERSONAL_METHODS,
    SIMPLE_METHODS,
    Method,
)
from perpeft_ray.config.rules import at_least, between, positive
from perpeft_ray.config.variants import FACTS, Variant

Applies = Callable[[Method, Variant | None], bool]


def _always(method: Method, variant: Variant | None) -> bool:
    return True


def _trained(method: Method, variant: Variant | None) -> bool:
    return method not in SIMPLE_METHODS


def _ranked(method: Method, variant: Variant | None) -> bool:
    facts = FACTS.get(variant) if variant else None
    return method in PEFT_METHODS and facts is not None and facts.rank is not None


def _grouped(method: Method, variant: Variant | None) -> bool:
    return method in GROUPED_METHODS


def _personal(method: Method, variant: Variant | None) -> bool:
    return method in PERSONAL_METHODS


@dataclass(frozen=True)
class Searchable:
    """A number that can be fixed or searched; the variant can be searched too."""

    name: str
    """Field of `TrialConfig`, and column of the results."""
    given: str
    """Dotted setting that fixes it."""
    choices: str
    """Field of `SearchSettings` with the values to choose from."""
    symbol: str
    """Short label in tables and status lines."""
    label: str
    """Name in figures and reports."""
    rule: Callable[[str, Any], None]
    """Raises InputError for a value that is not allowed; takes the setting's name and value."""
    applies: Applies = _always
    """Whether it is searched for a method with a variant."""
    holds: Applies = _always
    """Whether a trial of a method with a variant has a value; else it is None."""
    by_definition: Mapping[Method, float] = field(default_factory=dict)
    """Methods that are defined by a value of it."""
    column: str = ""
    """Header in tables of settings; empty: the label."""
    words: str = ""
    """Form of its value in a sentence; such settings are in every table of settings, others only
    if they vary."""
    whole: bool = False
    """Whether it is a whole number."""
    range: str | None = None
    """Field of `SearchSettings` with its log-uniform range, an alternative to choices."""
    scale: int | None = None
    """Base of its logarithmic axis in figures; None: linear."""


_count = partial(at_least, least=1)
_not_negative = partial(between, low=0.0, high=inf)

SEARCHABLE: tuple[Searchable, ...] = (
    Searchable(
        "groups",
        "grouping.groups",
        "groups",
        "G",
        "groups",
        _count,
        # large_global has the size of all groups' modules together.
        applies=lambda method, _: method in GROUPED_METHODS or method == "large_global",
        holds=_grouped,
        words="{:g} groups",
        whole=True,
    ),
    Searchable(
        "rank",
        "peft.rank",
        "ranks",
        "r",
        "rank",
        _count,
        applies=_ranked,
        holds=_ranked,
        words="rank {:g}",
        whole=True,
        scale=2,
    ),
    Searchable(
        "conditioning_weight",
        "loss.conditioning_weight",
        "conditioning_weights",
        "λ",
        "conditioning weight λ",
        partial(between, low=0.0, high=1.0),
        applies=lambda method, _: method in PERSONAL_METHODS - {"without_group_negatives"},
        holds=_personal,
        by_definition={"without_group_negatives": 0.0},
        column="λ",
        words="λ = {:g}",
    ),
    Searchable(
        "learning_rate",
        "train.lr",
        "learning_rates",
        "lr",
        "learning rate",
        positive,
        applies=_trained,
        words="learning rate {:g}",
        range="learning_rate",
        scale=10,
    ),
    Searchable(
        "multimodal_weight",
        "model.multimodal_weight",
        "multimodal_weights",
        "w",
        "multimodal weight w",
        _not_negative,
        applies=lambda method, _: method not in SIMPLE_METHODS | {"without_mm"},
        by_definition={"without_mm": 0.0},
    ),
    Searchable(
        "weight_decay",
        "train.weight_decay",
        "weight_decays",
        "wd",
        "weight decay",
        _not_negative,
        applies=_trained,
    ),
    Searchable(
        "peft_lr_scale",
        "train.peft_lr_scale",
        "peft_lr_scales",
        "peft lr ×",
        "PEFT learning rate ×",
        positive,
        applies=lambda method, _: method in PEFT_METHODS,
    ),
)

VARIED = tuple(setting.name for setting in SEARCHABLE)
"""Their names."""
