"""Builds a trial's model from its configuration, seeded."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import nn

from perpeft_ray.config import Dtype, Method, TrialConfig
from perpeft_ray.encoder import fast
from perpeft_ray.encoder.fast.prefix import SuffixItemEncoder, prefix_states
from perpeft_ray.encoder.features import hidden_states, projected_features
from perpeft_ray.encoder.foundation import Modality, Towers, load_towers, resolved_dtype
from perpeft_ray.encoder.hardware import choose_kernels
from perpeft_ray.encoder.iisan import STATES
from perpeft_ray.encoder.items import CachedItemEncoder, IisanItemEncoder, TowerItemEncoder
from perpeft_ray.encoder.variants import AdapterSettings, add_adapter
from perpeft_ray.recommender.model import ItemTower, Recommender
from perpeft_ray.recommender.projector import Projector
from perpeft_ray.recommender.sasrec import SASRec
from perpeft_ray.recommender.vectors import PersonalVectors, VectorRecommender
from perpeft_ray.train.grouping import Grouping
from perpeft_ray.train.workspace import Workspace, open_catalogue

_MODALITY: dict[Method, Modality] = {"without_text": "image", "without_image": "text"}
"""The modality that methods without the other one keep."""


def computed_with(encoder: str, dtype: Dtype, device: torch.device) -> str:
    """What results depend on besides settings, data and encoder: the dtype that a setting means on
    a device, the kind of device, and whether fast paths are off."""
    plain = "" if fast.enabled() else "-plain"
    return f"{resolved_dtype(encoder, dtype, device)}-{device.type}{plain}"


def build_model(config: TrialConfig, workspace: Workspace, device: torch.device) -> Recommender:
    """The initial recommender of a trial; the same seed gives the same weights.

    SASRec's weights depend only on the seed and the model's sizes, so that all methods start alike
    under one seed.
    """
    choose_kernels(device)
    torch.manual_seed(config.seed)
    backbone = SASRec(
        workspace.num_items,
        config.hidden_units,
        config.sequence_length,
        config.blocks,
        config.heads,
        config.dropout,
    )
    tower = None
    if config.method != "without_mm":
        encoder = _item_encoder(config, workspace, device)
        torch.manual_seed(config.seed + 1)
        tower = ItemTower(encoder, Projector(encoder.out_features, config.hidden_units))
    return Recommender(backbone, tower, config.multimodal_weight).to(device)


def _item_encoder(
    config: TrialConfig, workspace: Workspace, device: torch.device
) -> CachedItemEncoder | IisanItemEncoder | TowerItemEncoder:
    modality = _MODALITY.get(config.method)

    def towers() -> Towers:
        return load_towers(workspace.encoder, config.dtype, device)

    catalogue = open_catalogue(workspace)
    computed = computed_with(workspace.encoder, config.dtype, device)
    name = f"{workspace.features.name}-{computed}"
    if config.variant is None:
        folder = workspace.features.with_name(f"{name}-projected")
        return CachedItemEncoder(projected_features(towers, catalogue, folder))
    if config.variant == "iisan":
        folder = workspace.features.with_name(f"{name}-hidden-{STATES}")
        text, image = hidden_states(towers, catalogue, folder)
        assert config.bottleneck is not None
        torch.manual_seed(config.seed + 2)
        return IisanItemEncoder(
            None if modality == "image" else text,
            None if modality == "text" else image,
            config.bottleneck,
        )
    live = load_towers(workspace.encoder, config.dtype, device, modality)
    settings = AdapterSettings(
        variant=config.variant,
        rank=config.rank,
        dropout=config.adapter_dropout,
        last_layers=config.last_layers,
        seed=config.seed + 2,
    )
    states = None
    if config.last_layers is not None and fast.enabled():
        folder = workspace.features.with_name(
            f"{name}-before-last-{config.last_layers}-{modality or 'both'}"
        )
        states = prefix_states(live, catalogue, folder, config.last_layers)
    add_adapter(live, settings)
    if states is not None:
        return SuffixItemEncoder(live, catalogue, states)
    return TowerItemEncoder(live, catalogue)


def build_vectors(
    config: TrialConfig, model: Recommender, grouping: Grouping | None, num_users: int
) -> VectorRecommender:
    """The global recommender with a vector per group of `grouping`, or per user; seeded."""
    torch.manual_seed(config.seed + 3)
    level: Literal[1, 2] = 1 if config.method.endswith("_1") else 2
    device = model.backbone.item_embedding.weight.device
    owners = np.arange(num_users, dtype=np.int32) if grouping is None else grouping.valid
    count = num_users if grouping is None else config.groups
    assert count is not None
    vectors = PersonalVectors(count, config.hidden_units, level)
    return VectorRecommender(model, vectors.to(device), owners)


def trainable_parameters(config: TrialConfig, model: Recommender) -> int:
    """Parameters of all groups' PEFT modules and of vectors, without projectors."""
    of_vectors = _trainable(model.vectors) if isinstance(model, VectorRecommender) else 0
    return config.modules * peft_parameters(model) + of_vectors


def peft_parameters(model: Recommender) -> int:
    """Trainable parameters of one group's PEFT module, without the projector."""
    if model.tower is None:
        return 0
    return _trainable(model.tower.encoder)


def _trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
