"""PEFT variants inside the towers, built by the `peft` library.

`config/variants.py` says what each variant is; here each is a `peft` configuration over the model's
own modules (`targets.py`). The towers' weights stay frozen in their dtype; adapters train in
float32, and an untrained adapter does not change the output. Frozen random parts of a variant come
from the seed, so that all workers have the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from perpeft_ray.config import Variant
from perpeft_ray.encoder import fast
from perpeft_ray.encoder.foundation import Towers
from perpeft_ray.encoder.targets import find_targets
from perpeft_ray.errors import InputError


@dataclass(frozen=True)
class AdapterSettings:
    """Settings of an adapter; None where a setting does not apply to the variant."""

    variant: Variant
    rank: int | None
    dropout: float | None
    last_layers: int | None
    """Adapt only this many last layers of each tower; None: all."""
    seed: int


def add_adapter(towers: Towers, settings: AdapterSettings) -> None:
    """Add an adapter to the towers, in place; only its parameters require gradients.

    Raises InputError if the variant does not fit the model.
    """
    import peft

    device = next(towers.model.parameters()).device
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        warnings.catch_warnings(),
    ):
        # peft warns that it does not know a LayerNorm's sizes, which LN tuning does not need, and
        # that it asks transformers by an old name.
        warnings.filterwarnings("ignore", message="Unsupported layer type .*Norm")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        # Random projections are redrawn from their seed; see peft_config.
        warnings.filterwarnings("ignore", message="Specified to not (save|load)")
        torch.manual_seed(settings.seed)
        config = peft_config(towers, settings)
        peft.get_peft_model(towers.model, config)  # in place; its wrapper is not needed
    for name, module in towers.model.named_modules():
        if name.endswith("ln_tuning_layers.default"):
            _compute_in_float32(module)
    for parameter in trainable(towers).values():
        parameter.data = parameter.data.float()
    fast.speed_up_adapter(towers.model, settings.variant)
    towers.eval()


def peft_config(towers: Towers, settings: AdapterSettings) -> Any:
    """The variant's `peft.PeftConfig` for these towers.

    Raises InputError if the variant does not fit the model.
    """
    import peft

    targets = find_targets(towers.model, settings.last_layers)
    query_value = targets.query + targets.value
    rank, dropout = settings.rank or 0, settings.dropout or 0.0
    match settings.variant:
        case "lora" | "rslora" | "dora":
            return peft.LoraConfig(
                r=rank,
                lora_alpha=2 * rank,
                lora_dropout=dropout,
                use_rslora=settings.variant == "rslora",
                use_dora=settings.variant == "dora",
                target_modules=query_value,
            )
        case "ia3":
            return peft.IA3Config(
                target_modules=targets.key + targets.value + targets.feed_forward,
                feedforward_modules=targets.feed_forward,
            )
        case "loha":
            return peft.LoHaConfig(r=rank, alpha=2 * rank, target_modules=query_value)
        case "lokr":
            return peft.LoKrConfig(r=rank, alpha=2 * rank, target_modules=query_value)
        case "vera":
            return peft.VeraConfig(
                r=rank,
                vera_dropout=dropout,
                projection_prng_key=settings.seed,
                save_projection=False,  # the seed determines them
                target_modules=query_value,
            )
        case "randlora":
            return peft.RandLoraConfig(
                r=rank,
                randlora_alpha=2 * rank,
                randlora_dropout=dropout,
                projection_prng_key=settings.seed,
                save_projection=False,  # the seed determines them
                target_modules=query_value,
            )
        case "oft":
            _check_block(towers.model, query_value, rank)
            return peft.OFTConfig(r=0, oft_block_size=rank, target_modules=query_value)
        case "ln_tuning":
            return peft.LNTuningConfig(target_modules=targets.norms)
        case "bitfit":
            # Offsets that start at 0: the biases themselves stay frozen in the towers' dtype.
            return peft.BeftConfig(target_modules=targets.biased)
    raise ValueError(f"{settings.variant} is not inside the towers")


def adapter_modules(towers: nn.Module) -> Iterator[nn.Module]:
    """Modules that follow the adapter's training mode: peft's layers and their dropout."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in towers.named_modules():
        if isinstance(module, BaseTunerLayer) or name.endswith("_dropout.default"):
            yield module


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's trainable parameters by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _check_block(model: nn.Module, names: list[str], size: int) -> None:
    """Check that OFT's blocks fit; peft would silently take another size."""
    layers: list[Any] = [model.get_submodule(name) for name in names]
    widths = sorted({layer.in_features for layer in layers})
    if size < 2 or any(width % size for width in widths):
        raise InputError(
            "`peft.rank` of oft must be at least 2 and divide the encoder's widths "
            f"({', '.join(map(str, widths))}), but is {size}"
        )


def _compute_in_float32(norm: nn.Module) -> None:
    """Let a norm with float32 weights work in towers of another dtype."""

    def widen(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0].float(),)

    def narrow(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output.to(dtype)

    dtype = next(norm.parameters()).dtype
    norm.register_forward_pre_hook(widen)
    norm.register_forward_hook(narrow)
