"""The PEFT variants by name, with their properties; `encoder/variants.py` builds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Variant = Literal[
    "lora",
    "ia3",
    "iisan",
    "rslora",
    "dora",
    "loha",
    "lokr",
    "vera",
    "randlora",
    "oft",
    "ln_tuning",
    "bitfit",
]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
"""In the order of tables and figures."""

PAPER_VARIANTS: tuple[Variant, ...] = ("lora", "ia3", "iisan")
"""The paper's variants, which a study searches by default."""


@dataclass(frozen=True)
class VariantFacts:
    """Properties of a variant."""

    summary: str
    rank: str | None = None
    """Meaning of its rank; None: it has none."""
    dropout: bool = False
    """Whether `peft.dropout` applies: to the input of the adapter."""
    in_towers: bool = True
    """Whether it is inside the towers, so that gradients pass through them and `peft.last_layers`
    applies."""
    scalable: bool = False
    """Whether `large_global` can use it, with its rank or bottleneck times the groups."""
    limits: str = ""
    """Its limits."""


FACTS: dict[Variant, VariantFacts] = {
    "lora": VariantFacts(
        "low-rank update of query and value (Hu et al. 2022)",
        "of the trained update, scaled by alpha / rank with alpha = 2 x rank",
        dropout=True,
        scalable=True,
    ),
    "ia3": VariantFacts(
        "trained scales of key, value and the feed-forward's input (Liu et al. 2022)"
    ),
    "iisan": VariantFacts(
        "side network on cached hidden states, as wide as peft.bottleneck (Fu et al. 2024)",
        in_towers=False,
        scalable=True,
        limits="needs hidden states of one width per tower: no convolutional towers",
    ),
    "rslora": VariantFacts(
        "LoRA scaled by alpha / sqrt(rank) (Kalajdzievski 2023)",
        "of the trained update, alpha = 2 x rank",
        dropout=True,
        scalable=True,
    ),
    "dora": VariantFacts(
        "LoRA on a weight's direction, with a separately trained magnitude (Liu et al. 2024)",
        "of the direction's update, alpha = 2 x rank",
        dropout=True,
        scalable=True,
        limits="in bfloat16 an untrained module changes outputs by rounding",
    ),
    "loha": VariantFacts(
        "update as the Hadamard product of two low-rank ones (Hyeon-Woo et al. 2022)",
        "of both factors, so the update's rank is up to its square; alpha = 2 x rank",
        scalable=True,
        limits="makes the whole update matrix in every forward",
    ),
    "lokr": VariantFacts(
        "update as a Kronecker product (Yeh et al. 2024)",
        "of the larger factor, alpha = 2 x rank; ignored from half the factor's size on",
        limits="makes the whole update matrix in every forward",
    ),
    "vera": VariantFacts(
        "trained vectors around random matrices shared by all layers (Kopiczko et al. 2024)",
        "of the frozen random matrices",
        dropout=True,
        limits="modules fit only the seed that drew the matrices",
    ),
    "randlora": VariantFacts(
        "trained scales of many frozen random low-rank bases (Albert et al. 2025)",
        "of one basis: the lower, the more bases and trained parameters; alpha = 2 x rank",
        dropout=True,
        limits="modules fit only the seed that drew the bases",
    ),
    "oft": VariantFacts(
        "block-diagonal rotation of query's and value's inputs (Qiu et al. 2023)",
        "size of a block",
        limits="the rank must divide the layers' input widths and be at least 2",
    ),
    "ln_tuning": VariantFacts("own scales and shifts of the LayerNorms (Zhao et al. 2024)"),
    "bitfit": VariantFacts(
        "trained offsets of the linear layers' biases (after Ben Zaken et al. 2022)",
        limits="does not train biases of LayerNorms (ln_tuning does), convolutions and projections",
    ),
}
