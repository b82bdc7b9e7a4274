"""Towers against transformers' own models and processors."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (  # type: ignore[attr-defined]  # transformers adds it
    BertConfig,
    BertModel,
    BertTokenizerFast,
    CLIPModel,
    CLIPProcessor,
    T5Config,
    T5EncoderModel,
)

from perpeft_ray.data.catalogue import ItemBatch
from perpeft_ray.encoder.foundation import load_towers, skeleton
from perpeft_ray.encoder.hardware import Sizes
from perpeft_ray.encoder.preprocess import FoundationPreprocessor
from perpeft_ray.encoder.source import TOYSHOP_CLIP, encoder_fingerprint, parse_encoder
from perpeft_ray.encoder.titles import title_parts
from perpeft_ray.errors import InputError

CPU = torch.device("cpu")
TITLES = ["red oak chair", "a lamp", "small striped steel vase from kitchen"]


def _images(count: int, size: tuple[int, int]) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    shape = (count, size[1], size[0], 3)
    return [Image.fromarray(a) for a in rng.integers(0, 256, size=shape, dtype=np.uint8)]


def _batch(name: str, titles: list[str], images: list[Image.Image] | None) -> ItemBatch:
    preprocessor = FoundationPreprocessor(name)
    tokens = preprocessor.tokens(titles)
    longest = max(map(len, tokens))
    ids = [row + [preprocessor.pad_token_id] * (longest - len(row)) for row in tokens]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in tokens]
    pixels = None
    if images is not None:
        pixels = torch.from_numpy(np.stack([preprocessor.image(image) for image in images]))
    present = torch.ones(len(titles), dtype=torch.bool)
    return ItemBatch(pixels, torch.tensor(ids), torch.tensor(mask), present, present)


@pytest.mark.parametrize("size", [(32, 32), (50, 90), (131, 40)])
def test_pixels_are_those_of_the_pillow_processor(size):
    images = _images(2, size)
    processor = CLIPProcessor.from_pretrained(TOYSHOP_CLIP, backend="pil").image_processor
    towers = load_towers("toyshop-clip", "float32", CPU)
    batch = _batch("toyshop-clip", TITLES[:2], images)
    expected = processor(images=images, return_tensors="pt").pixel_values
    torch.testing.assert_close(towers.pixels(batch), expected, atol=1e-5, rtol=0)


def test_features_are_those_of_clip():
    images = _images(3, (32, 32))
    processor = CLIPProcessor.from_pretrained(TOYSHOP_CLIP, backend="pil")
    model = CLIPModel.from_pretrained(TOYSHOP_CLIP).eval()
    inputs = processor(text=TITLES, images=images, return_tensors="pt", padding=True)
    with torch.no_grad():
        text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        image = model.get_image_features(inputs["pixel_values"])
        expected = torch.cat([image.pooler_output, text.pooler_output], dim=1)
        towers = load_towers("toyshop-clip", "float32", CPU)
        found = towers(_batch("toyshop-clip", TITLES, images))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_last_hidden_states_lead_to_the_features():
    towers = load_towers("toyshop-clip", "float32", CPU)
    batch = _batch("toyshop-clip", TITLES, _images(3, (32, 32)))
    with torch.no_grad():
        text, image = towers.hidden_states(batch)
        vision = towers.model.vision_model
        from_image = towers.model.visual_projection(vision.post_layernorm(image[:, -1]))
        final = towers.model.text_model.final_layer_norm(text[:, -1])
        expected = torch.cat([from_image, towers.model.text_projection(final)], dim=1)
        torch.testing.assert_close(towers(batch), expected, atol=1e-5, rtol=1e-4)
    assert text.shape == (3, towers.text.layers + 1, towers.text.width)
    assert image.shape == (3, towers.image.layers + 1, towers.image.width)


def test_absent_modalities_are_zero():
    towers = load_towers("toyshop-clip", "float32", CPU)
    whole = _batch("toyshop-clip", TITLES[:2], _images(2, (32, 32)))
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
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "oak", "chair", "a", "lamp"]
    BertTokenizerFast(vocab={word: n for n, word in enumerate(words)}).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    return folder


def test_text_tower_pools_by_the_mean_over_tokens(tiny_bert):
    name = f"text:{tiny_bert}"
    towers = load_towers(name, "float32", CPU)
    batch = _batch(name, TITLES[:2], None)
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
    batch = _batch(name, [*titles, " ".join(["oak"] * 62)], None)
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


def test_bad_names():
    with pytest.raises(InputError, match=r"config\.json"):
        parse_encoder("./no/such/folder")
    with pytest.raises(InputError, match="text:"):
        parse_encoder("text:")


def test_a_text_model_needs_its_prefix(tiny_bert):
    with pytest.raises(InputError, match="text:PATH"):
        load_towers(str(tiny_bert), "float32", CPU)


def test_fingerprint_is_of_the_weights(tiny_bert, tmp_path):
    before = encoder_fingerprint(f"text:{tiny_bert}")
    assert before == encoder_fingerprint(f"text:{tiny_bert}")
    config = BertConfig.from_pretrained(tiny_bert)
    torch.manual_seed(1)
    BertModel(config).save_pretrained(tmp_path)
    assert encoder_fingerprint(f"text:{tmp_path}") != before


def _changed(encoder: Path, to: Path) -> Path:
    return Path(shutil.copytree(encoder, to / "encoder"))


def test_a_model_with_a_decoder_is_no_text_encoder(tiny_bert, tmp_path):
    folder = _changed(tiny_bert, tmp_path)
    config = T5Config(vocab_size=10, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder)
    assert FoundationPreprocessor(f"text:{folder}").max_tokens == 128
    with pytest.raises(InputError, match=r"a text encoder alone .* is t5, which has a decoder"):
        skeleton(f"text:{folder}")


def test_a_dual_encoder_is_no_text_encoder():
    with pytest.raises(InputError, match="is clip, a dual encoder"):
        skeleton(f"text:{TOYSHOP_CLIP}")


def test_weights_of_another_model_are_refused(tiny_bert, tmp_path):
    folder = _changed(tiny_bert, tmp_path)
    shutil.copy(TOYSHOP_CLIP / "model.safetensors", folder)
    with pytest.raises(InputError, match=r"weights for all its parameters, but \d+ have none"):
        load_towers(f"text:{folder}", "float32", CPU)


def test_weights_that_were_cut_are_refused(tiny_bert, tmp_path):
    weights = _changed(tiny_bert, tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="must have readable weights"):
        encoder_fingerprint(f"text:{weights.parent}")


def test_an_encoder_without_weights_is_refused(tiny_bert, tmp_path):
    folder = _changed(tiny_bert, tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"safetensors, but .* has no model\.safetensors"):
        encoder_fingerprint(f"text:{folder}")


def test_a_tokenizer_without_a_vocabulary_is_refused(tiny_bert, tmp_path):
    folder = _changed(tiny_bert, tmp_path)
    for file in folder.glob("token*"):
        file.unlink()
    with pytest.raises(InputError, match="a tokenizer with a vocabulary"):
        FoundationPreprocessor(f"text:{folder}")


def test_what_is_no_fault_of_the_encoder_is_not_reported_as_one(tiny_bert, monkeypatch):
    def broken(*_: object) -> None:
        raise AttributeError("ours")

    monkeypatch.setattr("perpeft_ray.encoder.foundation.clip.replace_activation", broken)
    with pytest.raises(AttributeError, match="ours"):
        load_towers(f"text:{tiny_bert}", "float32", CPU)
