"""Towers that begin at the first adapted layer, against the whole towers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call

from perpeft_ray.config import Dtype
from perpeft_ray.data.catalogue import Catalogue, build_catalogue
from perpeft_ray.data.sources import open_dataset
from perpeft_ray.encoder.fast import prefix
from perpeft_ray.encoder.fast.prefix import SuffixItemEncoder, prefix_states
from perpeft_ray.encoder.foundation import Towers, load_towers
from perpeft_ray.encoder.items import TowerItemEncoder
from perpeft_ray.encoder.preprocess import FoundationPreprocessor
from perpeft_ray.encoder.targets import layer_stacks
from perpeft_ray.encoder.variants import AdapterSettings, add_adapter, trainable
from tests.encoder.tiny_models import write_tiny_model
from tests.small_shop import write_small_shop

CPU = torch.device("cpu")
ITEMS = np.array([1, 4, 5, 17, 29, 30])


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return write_small_shop(tmp_path_factory.mktemp("shop") / "small")


def _catalogue(name: str, shop: Path, cache: Path) -> Catalogue:
    return build_catalogue(
        open_dataset(f"parquet:{shop}", cache), FoundationPreprocessor(name), cache
    )


def _adapted(name: str, dtype: Dtype, last_layers: int) -> Towers:
    towers = load_towers(name, dtype, CPU)
    add_adapter(towers, AdapterSettings("lora", 4, 0.0, last_layers, seed=0))
    return towers


def _module(towers: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.nn.Parameter(p.detach() + 0.1 * torch.randn(p.shape, generator=generator))
        for name, p in trainable(towers).items()
    }


@pytest.mark.parametrize(
    ("family", "dtype", "last_layers", "stored"),
    [
        ("clip", "bfloat16", 2, {"text", "image"}),
        ("align", "float32", 2, {"text"}),
    ],
)
def test_stored_states_replace_the_frozen_layers(
    shop, tmp_path, family, dtype, last_layers, stored
):
    name = write_tiny_model(family, tmp_path / "encoder")
    catalogue = _catalogue(name, shop, tmp_path)
    towers = load_towers(name, dtype, CPU)
    states = prefix_states(towers, catalogue, tmp_path / "states", last_layers)
    assert states is not None
    assert set(states.arrays) == stored
    passes: list[str] = []
    for half in (towers.text, towers.image):
        for stack in layer_stacks(half.tower).values() if half else ():
            frozen = next(m for m in stack[0].modules() if isinstance(m, torch.nn.Linear))
            frozen.register_forward_hook(lambda *_: passes.append("frozen layer"))
    add_adapter(towers, AdapterSettings("lora", 4, 0.0, last_layers, seed=0))
    short = SuffixItemEncoder(towers, catalogue, states)
    whole = TowerItemEncoder(_adapted(name, dtype, last_layers), catalogue)
    module = _module(short)
    assert set(module) == set(trainable(whole))
    tolerance = {"atol": 1e-5, "rtol": 1e-4} if dtype == "float32" else {"atol": 0.05, "rtol": 0.05}
    passes.clear()  # seeing how wide the features are takes one
    outputs, gradients = [], []
    for encoder in (short, whole):
        out = functional_call(encoder, module, encoder.inputs(ITEMS))
        gradients.append(torch.autograd.grad(out.square().mean(), list(module.values())))
        outputs.append(out.detach())
    assert passes == []
    torch.testing.assert_close(*outputs, **tolerance)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, **tolerance)
    towers(catalogue.batch(ITEMS))  # without given states the towers are whole
    assert len(passes) == len(stored)


def test_nothing_is_stored_without_frozen_layers(shop, tmp_path):
    towers = load_towers("toyshop-clip", "float32", CPU)
    catalogue = _catalogue("toyshop-clip", shop, tmp_path)
    assert prefix_states(towers, catalogue, tmp_path / "states", 2) is None
    assert not (tmp_path / "states").exists()


def test_too_large_store_is_not_written(shop, tmp_path, monkeypatch, caplog):
    catalogue = _catalogue("toyshop-clip", shop, tmp_path)
    monkeypatch.setattr(prefix, "MAX_BYTES", 1000)
    towers = load_towers("toyshop-clip", "float32", CPU)
    assert prefix_states(towers, catalogue, tmp_path / "states", 1) is None
    assert "states of frozen layers are not cached" in caplog.text
    assert not (tmp_path / "states").exists()
