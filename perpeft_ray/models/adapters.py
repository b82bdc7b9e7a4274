"""Writes and reads a group's module: the PEFT part in `peft`'s own form, the projector beside it.

`peft` names and selects the tensors, so it can load any variant it knows. IISAN's side network,
which is not `peft`'s, is safetensors with a `config.json`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Set
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from perpeft_ray.config import TrialConfig
from perpeft_ray.errors import InputError
from perpeft_ray.models.layout import PROJECTOR
from perpeft_ray.recommender.model import GroupParameters, Recommender

ADAPTER = "adapter"
_PREFIX = "base_model.model."
"""Prefix of every name in a `PeftModel`'s file."""
_WEIGHTS = "adapter_model.safetensors"
_MODULE_LISTS = {"target_modules", "feedforward_modules"}
"""Fields of a `PeftConfig` that name modules of the model."""


def write_module(
    model: Recommender, module: GroupParameters, config: TrialConfig, folder: Path, base: str
) -> None:
    """Write a group's module of a recommender to an existing folder.

    `base`: the encoder's name, as in `parse_encoder`, for the adapter's configuration. Sets the
    model's own tower to the module's values. Writes nothing for methods without content.
    """
    if model.tower is None:
        return
    save_file(_named(module, "projector."), folder / PROJECTOR)
    encoder = _named(module, "encoder.")
    if not encoder:
        return
    parameters = dict(model.tower.named_parameters())
    with torch.no_grad():
        for name, tensor in module.items():
            parameters[name].copy_(tensor)
    adapted = _adapted(model)
    if adapted is not None:
        _write_adapter(adapted, folder, base)
        return
    assert config.variant is not None
    side = folder / config.variant
    side.mkdir()
    save_file(encoder, side / "model.safetensors")
    settings = {
        "variant": config.variant,
        "bottleneck": config.bottleneck,
        "base_model_name_or_path": base,
        "shapes": {name: list(tensor.shape) for name, tensor in encoder.items()},
    }
    (side / "config.json").write_text(json.dumps(settings, indent=2) + "\n")


def read_module(model: Recommender, config: TrialConfig, folder: Path) -> dict[str, nn.Parameter]:
    """The module that `write_module` wrote, for a recommender built from the same configuration.

    Raises InputError if the folder's tensors do not fit the model.
    """
    if model.tower is None:
        return {}
    tensors = {f"projector.{k}": v for k, v in load_file(folder / PROJECTOR).items()}
    adapted = _adapted(model)
    if adapted is not None:
        _read_adapter(adapted, folder)
    elif config.variant is not None:
        side = load_file(folder / config.variant / "model.safetensors")
        tensors |= {f"encoder.{name}": tensor for name, tensor in side.items()}
    module = model.new_module()
    expected = {name for name in module if adapted is None or name.startswith("projector.")}
    _check_names(folder, "tensors", tensors.keys() ^ expected)
    with torch.no_grad():
        for name, tensor in tensors.items():
            module[name].copy_(tensor)
    return module


def _named(module: GroupParameters, prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): tensor.detach().cpu().contiguous()
        for name, tensor in module.items()
        if name.startswith(prefix)
    }


def _adapted(model: Recommender) -> Any:
    """The transformers model with an adapter of `peft`; None if there is none."""
    assert model.tower is not None
    return next((m for m in model.tower.modules() if hasattr(m, "peft_config")), None)


def _parts(adapted: nn.Module) -> dict[str, str]:
    """The adapter folders of a model, and the name prefix of each one's modules.

    An encoder of separate models is a dictionary of them; each has its own folder, so that `peft`
    can load it into that transformers model alone.
    """
    if not isinstance(adapted, nn.ModuleDict):
        return {ADAPTER: ""}
    if len(adapted) == 1:
        (name,) = adapted
        return {ADAPTER: f"{name}."}
    return {f"{ADAPTER}-{name}": f"{name}." for name in adapted}


def _write_adapter(adapted: Any, folder: Path, base: str) -> None:
    import peft

    tensors = peft.get_peft_model_state_dict(adapted)
    parts = _parts(adapted)
    paths = base.rpartition(":")[2].split(",")  # for a pair, its models' names in order
    for (name, prefix), path in zip(parts.items(), paths, strict=True):
        (folder / name).mkdir()
        own = {
            _PREFIX + key.removeprefix(prefix): tensor.detach().cpu().contiguous()
            for key, tensor in tensors.items()
            if key.startswith(prefix)
        }
        save_file(own, folder / name / _WEIGHTS, metadata={"format": "pt"})
        config = copy.copy(adapted.peft_config["default"])
        others = tuple(other for other in parts.values() if other != prefix)
        for field in _MODULE_LISTS & vars(config).keys():
            names = [n for n in getattr(config, field) if not others or not n.startswith(others)]
            setattr(config, field, sorted(n.removeprefix(prefix) for n in names))
        config.base_model_name_or_path = path
        config.inference_mode = True
        config.save_pretrained(str(folder / name))


def _read_adapter(adapted: Any, folder: Path) -> None:
    import peft

    tensors = {
        prefix + key.removeprefix(_PREFIX): tensor
        for name, prefix in _parts(adapted).items()
        for key, tensor in load_file(folder / name / _WEIGHTS).items()
    }
    wanted = peft.get_peft_model_state_dict(adapted).keys()
    _check_names(folder, "adapter", tensors.keys() ^ wanted)
    peft.set_peft_model_state_dict(adapted, tensors)


def _check_names(folder: Path, what: str, odd: Set[str]) -> None:
    if odd:
        raise InputError(
            f"{folder} must have the {what} of its configuration, but not so {sorted(odd)[0]}"
        )
