"""Towers against transformers' own models and processors."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    BertModel,
    CLIPProcessor,
    T5Config,
    T5EncoderModel,
)

from perpeft_ray.data.catalogue import ItemBatch
from perpeft_ray.encoder.foundation import load_towers, skeleton
from perpeft_ray.encoder.hardware import Sizes
from perpeft_ray.encoder.preprocess import FoundationPreprocessor
from perpeft_ray.encoder.rows import title_parts
from perpeft_ray.encoder.source import TOYSHOP_CLIP, encoder_fingerprint, parse_encoder
from perpeft_ray.errors import InputError
from tests.encoder.tiny_models import TITLES, batch_of, noise_images, write_tiny_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [(32, 32), (50, 90), (131, 40)])
def test_pixels_are_those_of_the_pillow_processor(size):
    images = noise_images(size, size)
    processor = CLIPProcessor.from_pretrained(TOYSHOP_CLIP, backend="pil").image_processor
    towers = load_towers("toyshop-clip", "float32", CPU)
    batch = batch_of("toyshop-clip", TITLES[:2], images)
    expected = processor(images=images, return_tensors="pt").pixel_values
    torch.testing.assert_close(towers.pixels(batch), expected, atol=1e-5, rtol=0)


def test_missing_modalities_are_zero():
    towers = load_towers("toyshop-clip", "float32", CPU)
    whole = batch_of("toyshop-clip", TITLES[:2], noise_images((32, 32), (32, 32)))
    half = ItemBatch(
        whole.pixels,
        whole.token_ids,
        whole.attention_mask,
        has_image=torch.tensor([False, True]),
        has_title=torch.tensor([True, False]),
    )
    with torch.no_grad():
        features = towers(half)
    assert not features[0, : towers.image_features].any()
    assert features[0, towers.image_features :].any()
    assert features[1, : towers.image_features].any()
    assert not features[1, towers.image_features :].any()


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    write_tiny_model("text", folder)
    return folder


def test_text_tower_pools_by_the_mean_over_tokens(tiny_bert):
    name = f"text:{tiny_bert}"
    towers = load_towers(name, "float32", CPU)
    batch = batch_of(name, TITLES[:2], [])
    with torch.no_grad():
        found = towers(batch)
        model = BertModel.from_pretrained(tiny_bert).eval()
        for row in range(2):
            ids = batch.token_ids[row, : batch.attention_mask[row].sum()]
            alone = model(ids[None]).last_hidden_state[0].mean(0)
            torch.testing.assert_close(found[row], alone, atol=1e-5, rtol=1e-4)
    assert FoundationPreprocessor(name).image_size == 0


@pytest.mark.parametrize(
    "sizes",
    [Sizes(part_cost=50, part_tokens=600), Sizes(50, 600, length_step=8, item_step=16)],
    ids=["as long as they are", "padded"],
)
def test_titles_encoded_by_length_come_back_in_order(tiny_bert, sizes):
    name = f"text:{tiny_bert}"
    towers = load_towers(name, "float32", CPU)
    rng = np.random.default_rng(0)
    words = ["red", "oak", "chair", "lamp"]
    titles = [" ".join(rng.choice(words, size=rng.integers(1, 40))) for _ in range(100)]
    batch = batch_of(name, [*titles, " ".join(["oak"] * 62)], [])
    lengths = batch.attention_mask.sum(dim=1).numpy()
    parts = title_parts(lengths, sizes, most=64)
    assert parts is not None
    assert len(parts.rows) > 2
    with torch.no_grad():
        found = towers(replace(batch, parts=parts))
        torch.testing.assert_close(found, towers.text.features(batch), atol=1e-5, rtol=1e-4)


def test_title_parts_are_the_cheapest_of_all_cuts():
    lengths = np.array([3, 9, 4, 4, 8, 3, 20, 9])
    ascending = np.sort(lengths)
    costs = []
    for size in range(len(lengths)):
        for cuts in combinations(range(1, len(lengths)), size):
            pieces = np.split(ascending, cuts)
            costs.append(sum(len(p) * p[-1] for p in pieces) + 6 * len(pieces))
    parts = title_parts(lengths, Sizes(part_cost=6, part_tokens=10**6), most=99)
    assert parts is not None
    tokens = sum(len(r) * n for r, n in zip(parts.rows, parts.longest, strict=True))
    assert tokens + 6 * len(parts.rows) == min(costs)
    assert torch.cat(parts.rows)[parts.back].tolist() == list(range(8))
    assert title_parts(np.full(8, 5), Sizes(6, 10**6), most=99) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./no/such/folder", r"config\.json"),
        ("text:", "text:"),
        ("pair:bert", "must name a folder"),
    ],
)
def test_bad_names(name, message):
    with pytest.raises(InputError, match=message):
        parse_encoder(name)


def test_name_of_a_pair():
    source = parse_encoder("pair:org/bert,org/vit")
    assert (source.kind, source.path, source.image_path) == ("pair", "org/bert", "org/vit")


def test_text_model_needs_its_prefix(tiny_bert):
    with pytest.raises(InputError, match="text:PATH"):
        load_towers(str(tiny_bert), "float32", CPU)


def without_its_vocabulary(encoder: Path) -> None:
    for file in [*encoder.glob("token*"), encoder / "vocab.txt"]:
        file.unlink()


def with_a_decoder(encoder: Path) -> None:
    config = T5Config(vocab_size=10, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(encoder)


@pytest.mark.parametrize(
    ("broken", "read", "message"),
    [
        (with_a_decoder, skeleton, r"a text encoder alone .* is t5, which has a decoder"),
        (
            lambda encoder: shutil.copy(TOYSHOP_CLIP / "model.safetensors", encoder),
            lambda name: load_towers(name, "float32", CPU),
            r"weights for all its parameters, but not for \d+ \(",
        ),
        (
            lambda encoder: os.truncate(encoder / "model.safetensors", 1000),
            encoder_fingerprint,
            "must have readable weights",
        ),
        (
            lambda encoder: (encoder / "model.safetensors").unlink(),
            encoder_fingerprint,
            r"safetensors, but .* has no model\.safetensors",
        ),
        (without_its_vocabulary, FoundationPreprocessor, "a tokenizer with a vocabulary"),
    ],
)
def test_unusable_text_encoder_is_refused(tiny_bert, tmp_path, broken, read, message):
    encoder = Path(shutil.copytree(tiny_bert, tmp_path / "encoder"))
    broken(encoder)
    with pytest.raises(InputError, match=message):
        read(f"text:{encoder}")


def test_dual_encoder_is_no_text_encoder():
    with pytest.raises(InputError, match="is clip, a dual encoder"):
        skeleton(f"text:{TOYSHOP_CLIP}")


def test_own_faults_are_not_reported_as_the_encoders(tiny_bert, monkeypatch):
    def broken(*_: object) -> None:
        raise AttributeError("ours")

    monkeypatch.setattr("perpeft_ray.encoder.fast.speed_up_model", broken)
    with pytest.raises(AttributeError, match="ours"):
        load_towers(f"text:{tiny_bert}", "float32", CPU)
