"""PEFT variants that live inside the towers, placed there by the `peft` library.

Each variant names its target modules per family; `peft` does the rest. The towers' own weights stay
frozen and in their dtype, the adapters are trained in float32. Source: the paper, section 4.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from perpeft_ray.encoder.dropout import replace_dropout
from perpeft_ray.encoder.foundation import Towers
from perpeft_ray.errors import InputError

_QUERY_VALUE = {"clip": ["q_proj", "v_proj"], "bert": ["query", "value"]}
_KEY_VALUE = {"clip": ["k_proj", "v_proj"], "bert": ["key", "value"]}
_FEED_FORWARD = {"clip": ["fc1"], "bert": ["intermediate.dense"]}


def add_adapter(
    towers: Towers,
    variant: Literal["lora", "ia3"],
    *,
    rank: int | None,
    dropout: float | None,
    seed: int,
) -> None:
    """Put an adapter into the towers, in place; only its parameters require gradients.

    `rank` and `dropout` apply to LoRA (alpha = 2 x rank). An untrained adapter leaves the towers'
    output as it was. Raises InputError where the model's family is not known.
    """
    import peft

    names = {name for name, _ in towers.model.named_modules()}
    family = next((key for key, targets in _QUERY_VALUE.items() if _found(targets, names)), None)
    if family is None:
        raise InputError(
            f"`peft.variant` {variant} needs attention layers named as in "
            f"{', '.join(_QUERY_VALUE)}, but {type(towers.model).__name__} has none"
        )
    config: Any
    if variant == "lora":
        assert rank is not None
        assert dropout is not None
        config = peft.LoraConfig(
            r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules=_QUERY_VALUE[family]
        )
    else:
        config = peft.IA3Config(
            target_modules=_KEY_VALUE[family] + _FEED_FORWARD[family],
            feedforward_modules=_FEED_FORWARD[family],
        )
    device = next(towers.model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, towers.model)
    for name, module in towers.model.named_modules():
        if name.endswith("lora_dropout") and device.type == "cpu":
            replace_dropout(module)
    for parameter in trainable(towers).values():
        parameter.data = parameter.data.float()


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's trainable parameters by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _found(targets: list[str], names: set[str]) -> bool:
    return any(name.split(".")[-1] == targets[0] for name in names)
