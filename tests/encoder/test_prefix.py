"""Towers that begin at the first adapted layer, against the whole towers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from perpeft_ray.data.catalogue import Catalogue, build_catalogue
from perpeft_ray.data.sources import open_dataset
from perpeft_ray.encoder.fast import prefix
from perpeft_ray.encoder.fast.prefix import SuffixItemEncoder, prefix_states
from perpeft_ray.encoder.foundation import load_towers
from perpeft_ray.encoder.preprocess import FoundationPreprocessor
from perpeft_ray.encoder.targets import layer_stacks
from perpeft_ray.encoder.variants import AdapterSettings, add_adapter
from tests.encoder.tiny_models import write_tiny_model
from tests.plain_batch import plain_batch
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


@pytest.mark.parametrize(("family", "stored"), [("clip", {"text", "image"}), ("align", {"text"})])
def test_stored_states_replace_the_frozen_layers(shop, tmp_path, family, stored):
    """`test_fast.py` compares what they compute."""
    name = write_tiny_model(family, tmp_path / "encoder")
    catalogue = _catalogue(name, shop, tmp_path)
    towers = load_towers(name, "float32", CPU)
    states = prefix_states(towers, catalogue, tmp_path / "states", 2)
    assert states is not None
    assert set(states.arrays) == stored
    passes: list[str] = []
    for half in (towers.text, towers.image):
        for stack in layer_stacks(half.tower).values() if half else ():
            frozen = next(m for m in stack[0].modules() if isinstance(m, torch.nn.Linear))
            frozen.register_forward_hook(lambda *_: passes.append("frozen layer"))
    add_adapter(towers, AdapterSettings("lora", 4, 0.0, 2, seed=0))
    encoder = SuffixItemEncoder(towers, catalogue, states)
    passes.clear()  # seeing how wide the features are takes one
    encoder(*encoder.inputs(ITEMS))
    assert passes == []
    towers(plain_batch(catalogue, ITEMS))  # without given states the towers are whole
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
