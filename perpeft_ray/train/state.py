"""The trained state: SASRec, the groups' modules, and their optimisers.

It is written as safetensors, flat and named, never as a pickle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from perpeft_ray.config import TrialConfig
from perpeft_ray.recommender.model import Recommender


@dataclass(frozen=True, eq=False)
class TrainState:
    """The model, every group's module, and an optimiser for each; the same on every worker.

    SASRec and every module have their own optimiser: a step without a batch of a group does not
    change that group's module or its optimiser's moments.
    """

    model: Recommender
    modules: dict[int, dict[str, nn.Parameter]]
    backbone_optimizer: AdamW
    module_optimizers: dict[int, AdamW]


def new_state(
    model: Recommender, modules: Mapping[int, dict[str, nn.Parameter]], config: TrialConfig
) -> TrainState:
    """Fresh optimisers (AdamW) over a model and modules, with the config's learning rates.

    The id embedding learns at `id_lr_scale` and PEFT modules at `peft_lr_scale` times the
    learning rate of SASRec and the projectors.
    """
    table = model.backbone.item_embedding.weight
    rest = [p for p in model.backbone.parameters() if p is not table]
    return TrainState(
        model=model,
        modules=dict(modules),
        backbone_optimizer=_adamw(config, [(config.id_lr_scale, [table]), (1.0, rest)]),
        module_optimizers={
            group: _module_optimizer(module, config) for group, module in modules.items() if module
        },
    )


def weights(state: TrainState) -> dict[str, Tensor]:
    """Copies of SASRec's tensors (`backbone.*`) and of every module's (`modules.<group>.*`)."""
    out = {f"backbone.{k}": v for k, v in state.model.backbone.state_dict().items()}
    for group, module in state.modules.items():
        out |= {f"modules.{group}.{name}": p.detach() for name, p in module.items()}
    return {name: tensor.clone() for name, tensor in out.items()}


def load_weights(state: TrainState, tensors: Mapping[str, Tensor]) -> None:
    """Load the result of `weights`, in place."""
    backbone = {
        name.removeprefix("backbone."): tensor
        for name, tensor in tensors.items()
        if name.startswith("backbone.")
    }
    state.model.backbone.load_state_dict(backbone)
    with torch.no_grad():
        for group, module in state.modules.items():
            for name, parameter in module.items():
                parameter.copy_(tensors[f"modules.{group}.{name}"])


def optimizer_tensors(state: TrainState) -> dict[str, Tensor]:
    """Copies of all optimiser moments and step counts, by name."""
    return {
        f"{name}.{index}.{key}": value.clone()
        for name, optimizer in _optimizers(state).items()
        for index, moments in optimizer.state_dict()["state"].items()
        for key, value in moments.items()
    }


def load_optimizers(state: TrainState, tensors: Mapping[str, Tensor]) -> None:
    """Load the result of `optimizer_tensors`, in place."""
    for name, optimizer in _optimizers(state).items():
        moments: dict[int, dict[str, Tensor]] = {}
        for full_name, tensor in tensors.items():
            owner, index, key = full_name.rsplit(".", 2)
            if owner == name:
                moments.setdefault(int(index), {})[key] = tensor.clone()
        saved = optimizer.state_dict()
        optimizer.load_state_dict({"state": moments, "param_groups": saved["param_groups"]})


def _optimizers(state: TrainState) -> dict[str, AdamW]:
    modules = {f"modules.{group}": opt for group, opt in state.module_optimizers.items()}
    return {"backbone": state.backbone_optimizer, **modules}


def _module_optimizer(module: Mapping[str, nn.Parameter], config: TrialConfig) -> AdamW:
    peft = [p for name, p in module.items() if name.startswith("encoder.")]
    projector = [p for name, p in module.items() if not name.startswith("encoder.")]
    return _adamw(config, [(config.peft_lr_scale, peft), (1.0, projector)])


def _adamw(config: TrialConfig, scaled: Sequence[tuple[float, Sequence[Tensor]]]) -> AdamW:
    groups = [
        {"params": parameters, "lr": config.learning_rate * scale}
        for scale, parameters in scaled
        if parameters
    ]
    return AdamW(groups, weight_decay=config.weight_decay, fused=True)
