"""Encoders of every family against transformers' own models and processors, tiny and random."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from perpeft_ray.data.catalogue import ItemBatch
from perpeft_ray.encoder.attention import LastAttention
from perpeft_ray.encoder.foundation import load_towers
from perpeft_ray.encoder.sizes import module_parameters
from perpeft_ray.encoder.source import encoder_fingerprint, parse_encoder
from perpeft_ray.encoder.variants import AdapterSettings, add_adapter, trainable
from perpeft_ray.errors import InputError
from tests.encoder.tiny_models import SIZE, TITLES, batch_of, noise_images, write_tiny_model

CPU = torch.device("cpu")
DUAL = ["clip", "siglip", "chinese_clip", "align"]
FAMILIES = [*DUAL, "text", "pair", "convolutional_pair"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    return {name: write_tiny_model(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}


def _images() -> list[Image.Image]:
    return noise_images((SIZE, SIZE), (50, 90), (131, 40))


def _batch(name: str, rows: tuple[int, ...] = (0, 1, 2)) -> ItemBatch:
    return batch_of(name, [TITLES[row] for row in rows], [_images()[row] for row in rows])


@pytest.mark.parametrize("family", DUAL)
def test_features_are_those_of_the_model(encoders, family):
    """From raw images and titles on, by the family's own processor and tokenizer."""
    path = encoders[family]
    model = AutoModel.from_pretrained(path).eval()
    padding = "max_length" if family == "siglip" else True  # as SigLIP's documentation demands
    text = AutoTokenizer.from_pretrained(path)(
        TITLES, padding=padding, max_length=20, truncation=True, return_tensors="pt"
    )
    if family == "siglip":
        text.pop("attention_mask")  # which its processor does not return
    pixels = AutoImageProcessor.from_pretrained(path, backend="pil")(
        images=_images(), return_tensors="pt"
    )
    with torch.no_grad():
        expected = [
            model.get_image_features(**pixels).pooler_output,
            model.get_text_features(**text).pooler_output,
        ]
        towers = load_towers(path, "float32", CPU)
        found = towers(_batch(path))
    assert towers.out_features == found.shape[1]
    torch.testing.assert_close(found, torch.cat(expected, dim=1), atol=1e-5, rtol=1e-4)


def test_pair_is_both_models_side_by_side(encoders):
    name = encoders["pair"]
    source = parse_encoder(name)
    assert source.image_path is not None
    batch = _batch(name)
    pixels = AutoImageProcessor.from_pretrained(source.image_path, backend="pil")(
        images=_images(), return_tensors="pt"
    )
    with torch.no_grad():
        vision = AutoModel.from_pretrained(source.image_path).eval()
        image = vision(**pixels).last_hidden_state[:, 0]
        text = load_towers(f"text:{source.path}", "float32", CPU)(batch)
        towers = load_towers(name, "float32", CPU)
        expected = torch.cat([image, text], dim=1)
        torch.testing.assert_close(towers(batch), expected, atol=1e-5, rtol=1e-4)
    assert (towers.image_features, towers.text_features) == (24, 16)


def test_convolutional_model_is_pooled_over_space(encoders):
    name = encoders["convolutional_pair"]
    path = parse_encoder(name).image_path
    batch = _batch(name)
    towers = load_towers(name, "float32", CPU)
    with torch.no_grad():
        model = AutoModel.from_pretrained(path).eval()
        expected = model(pixel_values=towers.pixels(batch)).pooler_output.flatten(1)
        torch.testing.assert_close(towers(batch)[:, :12], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "text"])
@pytest.mark.parametrize("modality", ["text", "image"])
def test_one_modality_is_its_half(encoders, family, modality):
    name = encoders[family]
    whole, half = load_towers(name, "float32", CPU), load_towers(name, "float32", CPU, modality)
    with torch.no_grad():
        both, one = whole(_batch(name)), half(_batch(name))
    split = both.split([whole.image_features, whole.text_features], dim=1)
    torch.testing.assert_close(one, split[modality == "text"], atol=1e-6, rtol=1e-5)
    assert half.out_features == one.shape[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_features_do_not_depend_on_other_items(encoders, family):
    """Padding to a longer title's length changes nothing."""
    towers = load_towers(encoders[family], "float32", CPU)
    with torch.no_grad():
        together = towers(_batch(encoders[family]))[1]
        alone = towers(_batch(encoders[family], (1,)))[0]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["clip", "siglip", "chinese_clip", "text", "pair"])
def test_features_follow_from_the_last_hidden_states(encoders, family):
    """The pooled last state, put through the rest of the model by hand, is the features."""
    name = encoders[family]
    towers = load_towers(name, "float32", CPU)
    batch = _batch(name)
    model: Any = towers.model
    with torch.no_grad():
        texts, images = towers.hidden_states(batch)
        features = towers(batch)
        assert texts.shape == (3, 4, 16)
        assert images is None or images.shape == (3, 4, 24)
        last = texts[:, -1]
        if family == "clip":
            last = model.text_projection(model.text_model.final_layer_norm(last))
        elif family == "siglip":
            last = model.text_model.head(model.text_model.final_layer_norm(last))
        elif family == "chinese_clip":
            last = model.text_projection(last)
        torch.testing.assert_close(features[:, towers.image_features :], last, atol=1e-5, rtol=1e-4)
        if family in ("clip", "chinese_clip"):
            assert images is not None
            image = model.visual_projection(model.vision_model.post_layernorm(images[:, -1]))
            torch.testing.assert_close(
                features[:, : towers.image_features], image, atol=1e-5, rtol=1e-4
            )
        if family == "siglip":  # no class token: the mean over patches
            assert images is not None
            states = model.vision_model(towers.pixels(batch), output_hidden_states=True)
            mean = states.hidden_states[1].mean(dim=1)
            torch.testing.assert_close(images[:, 1], mean, atol=1e-6, rtol=1e-5)


# They adapt attention, feed-forward networks, norms and biases; others adapt the same modules.
@pytest.mark.parametrize("variant", ["lora", "ia3", "ln_tuning", "bitfit"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_adapted(encoders, family, variant):
    """In all layers of all transformer towers; untrained it changes nothing; all of it learns."""
    name = encoders[family]
    towers = load_towers(name, "float32", CPU)
    batch = _batch(name)
    with torch.no_grad():
        before = towers(batch)
        add_adapter(towers, AdapterSettings(variant, 4, 0.1, None, 0))
        torch.testing.assert_close(towers(batch), before, atol=1e-5, rtol=1e-4)
    own = trainable(towers)
    alone = family in ("text", "pair", "convolutional_pair")
    prefixes = {"model.text." if alone else "model.text_model."}
    if family not in ("text", "align", "convolutional_pair"):
        prefixes.add("model.image." if family == "pair" else "model.vision_model.")
    for number in range(3):
        named = [n for n in own if f"layer.{number}." in n or f"layers.{number}." in n]
        assert {n[: len(p)] for n in named for p in prefixes if n.startswith(p)} == prefixes
    assert all(any(n.startswith(p) for p in prefixes) for n in own)
    with torch.no_grad():
        for p in own.values():
            p.add_(0.05)
    towers(batch).square().sum().backward()
    assert all(p.grad is not None for p in own.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_found_in_every_family(encoders, family):
    batch = _batch(encoders[family])
    plain = load_towers(encoders[family], "float32", CPU)
    probe = LastAttention(load_towers(encoders[family], "float32", CPU))
    with torch.no_grad():
        text, image = probe(batch)
        torch.testing.assert_close(probe.towers(batch), plain(batch))  # eager computes the same
    assert text is not None
    assert text.shape == batch.token_ids.shape
    torch.testing.assert_close(text.sum(dim=1), torch.ones(3))
    assert (text[batch.attention_mask == 0] == 0).all()
    if family in ("align", "text", "convolutional_pair"):
        assert image is None
    else:
        assert image is not None
        assert round(image.shape[1] ** 0.5) ** 2 == image.shape[1]
        torch.testing.assert_close(image.sum(dim=1), torch.ones(3))


def test_iisan_needs_states_of_one_width(encoders):
    for family in ("align", "convolutional_pair"):
        towers = load_towers(encoders[family], "float32", CPU)
        with pytest.raises(InputError, match="image tower is convolutional"):
            towers.state_sizes()
        with pytest.raises(InputError, match="image tower is convolutional"):
            module_parameters(encoders[family], "iisan")


def test_fingerprint_of_a_pair_depends_on_both(encoders):
    source = parse_encoder(encoders["pair"])
    other = parse_encoder(encoders["convolutional_pair"])
    mixed = f"pair:{source.path},{other.image_path}"
    assert encoder_fingerprint(mixed) != encoder_fingerprint(encoders["pair"])
    assert encoder_fingerprint(encoders["pair"]) != encoder_fingerprint(f"text:{source.path}")
