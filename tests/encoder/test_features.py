"""Stores of features and hidden states against towers asked item by item; stopped and resumed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from perpeft_ray.data.catalogue import build_catalogue
from perpeft_ray.data.folders import steps_done
from perpeft_ray.data.interactions import load_folder
from perpeft_ray.encoder import hardware
from perpeft_ray.encoder.features import hidden_states, projected_features
from perpeft_ray.encoder.foundation import Towers, load_towers
from perpeft_ray.encoder.iisan import kept_layers
from perpeft_ray.encoder.preprocess import FoundationPreprocessor
from tests.plain_batch import plain_batch
from tests.small_shop import write_small_shop

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    """Titles of very different lengths, some none; the last items without image."""
    shop = write_small_shop(tmp_path_factory.mktemp("shops") / "shop", items=50)
    items = pd.read_parquet(shop / "items.parquet")
    titles = ["steel " * (index * 7 % 12) for index in range(len(items))]
    images = [image if index < 45 else None for index, image in enumerate(items["image"])]
    items.assign(title=titles, image=images).to_parquet(shop / "items.parquet")
    cache = tmp_path_factory.mktemp("cache")
    return build_catalogue(load_folder(shop, ""), FoundationPreprocessor("toyshop-clip"), cache)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(hardware, "_CPU", replace(hardware._CPU, encode_items=8))


def towers() -> Towers:
    return load_towers("toyshop-clip", "float32", CPU)


def test_projected_features_are_those_of_the_towers(catalogue, tmp_path):
    found = projected_features(towers, catalogue, tmp_path / "store")
    model = towers()
    assert found.dtype == np.float32
    assert isinstance(found, np.memmap)
    assert not found[0].any()
    for item in range(1, 51):
        expected = model(plain_batch(catalogue, np.array([item])))[0].numpy()
        np.testing.assert_allclose(found[item], expected, atol=1e-5)


def test_hidden_states_are_those_of_the_towers(catalogue, tmp_path):
    text, image = hidden_states(towers, catalogue, tmp_path / "store")
    model = towers()
    text_layers, image_layers = kept_layers(model.text.layers, model.image.layers)
    assert text.dtype == image.dtype == np.float16
    assert not text[0].any()
    assert not image[0].any()
    for item in range(1, 51):
        texts, images = model.hidden_states(plain_batch(catalogue, np.array([item])))
        np.testing.assert_allclose(text[item], texts[0, text_layers], atol=2e-2, rtol=2e-3)
        np.testing.assert_allclose(image[item], images[0, image_layers], atol=2e-2, rtol=2e-3)
        # What is absent is zero, here as in a training step and in ranking.
        batch = plain_batch(catalogue, np.array([item]))
        assert text[item].any() == bool(batch.has_title[0])
        assert image[item].any() == bool(batch.has_image[0])
    assert not image[46:].any()


def test_batches_have_little_padding(catalogue, tmp_path):
    model = towers()
    padding = []
    whole = model.forward

    def counted(batch):
        padding.append(1 - batch.attention_mask.float().mean().item())
        return whole(batch)

    model.forward = counted
    projected_features(lambda: model, catalogue, tmp_path / "store")
    assert len(padding) == 7
    batches = [plain_batch(catalogue, np.arange(at, min(at + 8, 51))) for at in range(1, 51, 8)]
    in_order = [1 - batch.attention_mask.float().mean().item() for batch in batches]
    assert np.mean(padding) < np.mean(in_order) / 3


def test_nothing_is_computed_twice(catalogue, tmp_path):
    first = projected_features(towers, catalogue, tmp_path / "store").copy()

    def none() -> Towers:
        raise AssertionError

    np.testing.assert_array_equal(projected_features(none, catalogue, tmp_path / "store"), first)


def test_interrupted_computation_resumes(catalogue, tmp_path):
    alone = hidden_states(towers, catalogue, tmp_path / "alone")
    store, model = tmp_path / "store", towers()
    whole, batches = model.hidden_states, []

    def interrupted(batch):
        batches.append(batch)
        if len(batches) > 2:
            raise KeyboardInterrupt
        return whole(batch)

    model.hidden_states = interrupted
    with pytest.raises(KeyboardInterrupt):
        hidden_states(lambda: model, catalogue, store)
    done = steps_done(tmp_path / ".store.unfinished")
    assert done == 16
    assert not store.exists()

    model = towers()
    whole, encoded = model.hidden_states, []

    def counted(batch):
        encoded.append(len(batch.has_title))
        return whole(batch)

    model.hidden_states = counted
    again = hidden_states(lambda: model, catalogue, store)
    assert sum(encoded) == 50 - done
    for first, second in zip(alone, again, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-3)
    assert {path.name for path in store.iterdir()} == {"text.npy", "image.npy"}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ((2, 2), ([0, 1, 2], [0, 1, 2])),
        ((6, 0), ([0, 1, 2, 3, 4, 5, 6], [])),
        ((12, 6), ([0, 2, 4, 6, 8, 10, 12], [0, 1, 2, 3, 4, 5, 6])),
        ((24, 24), None),
        ((8, 12), None),
    ],
)
def test_kept_layers(layers, expected):
    text, image = kept_layers(*layers)
    assert expected is None or (text, image) == expected
    assert layers[1] == 0 or len(text) == len(image)
    assert (text[0], text[-1]) == (0, layers[0])
