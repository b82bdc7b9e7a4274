"""The methods that a study compares, by what they train."""

from __future__ import annotations

from typing import Literal, get_args

from perpeft_ray.config.variants import FACTS, Variant

Method = Literal[
    "popularity",
    "item_knn",
    "without_mm",
    "frozen_mm",
    "global",
    "user_level_1",
    "user_level_2",
    "group_level_1",
    "group_level_2",
    "perpeft",
    "without_text",
    "without_image",
    "without_group_negatives",
    "large_global",
    "random_grouping",
]
METHODS: tuple[Method, ...] = get_args(Method)

SIMPLE_METHODS: frozenset[Method] = frozenset({"popularity", "item_knn"})
"""Baselines counted from the histories: no training, no encoder, nothing random."""

PERSONAL_METHODS: frozenset[Method] = frozenset(
    {"perpeft", "random_grouping", "without_group_negatives", "without_text", "without_image"}
)
"""Methods with one module per group: PerPEFT, and PerPEFT with one change."""

VECTOR_METHODS: frozenset[Method] = frozenset(
    {"user_level_1", "user_level_2", "group_level_1", "group_level_2"}
)
"""Methods with one global module and a learned vector per user or group."""

GROUPED_METHODS: frozenset[Method] = PERSONAL_METHODS | {"group_level_1", "group_level_2"}
"""Methods that group the users (stage 2)."""

PEFT_METHODS: frozenset[Method] = PERSONAL_METHODS | VECTOR_METHODS | {"global", "large_global"}
"""Methods that train a PEFT module; the others have variant ``None``."""


def exists(method: Method, variant: Variant | None) -> bool:
    """Whether the combination exists: `large_global` needs a module with a size."""
    return method != "large_global" or (variant is not None and FACTS[variant].scalable)


TABLE_2: tuple[Method, ...] = METHODS[METHODS.index("without_mm") : METHODS.index("perpeft") + 1]
"""Rows of the paper's Table 2: PerPEFT and its baselines."""
TABLE_3: tuple[Method, ...] = METHODS[METHODS.index("perpeft") :]
"""Rows of the paper's Table 3: PerPEFT and its ablations."""
