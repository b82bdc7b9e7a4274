"""The shipped toyshop-clip: loads with transformers alone, is small, and retrieves."""

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPProcessor

from perpeft_ray.data.toyshop_items import IMAGE_SIZE
from perpeft_ray.encoder.source import TOYSHOP_CLIP
from studies import pretrain_toyshop_clip


@pytest.fixture(scope="module")
def model():
    return CLIPModel.from_pretrained(TOYSHOP_CLIP).eval()


@pytest.fixture(scope="module")
def processor():
    return CLIPProcessor.from_pretrained(TOYSHOP_CLIP)


@pytest.fixture(scope="module")
def held_out():
    return pretrain_toyshop_clip.held_out_items(12_345)


def test_folder_is_small_and_holds_safetensors_alone():
    files = [file for file in TOYSHOP_CLIP.iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 6 * 10**6
    assert {file.suffix for file in files} == {".json", ".safetensors"}


def test_titles_find_their_images_among_held_out_items(model, processor, held_out):
    recall = pretrain_toyshop_clip.text_to_image_recall(model, processor, *held_out)
    assert recall.at_5 > 0.9
    assert recall.at_1 > 0.35


def test_processor_only_scales_the_toyshops_own_images(processor, held_out):
    image = held_out[1][0]
    pixels = processor.image_processor(images=image, return_tensors="np").pixel_values[0]
    assert pixels.shape == (3, IMAGE_SIZE, IMAGE_SIZE)
    np.testing.assert_allclose(pixels.transpose(1, 2, 0), image / 127.5 - 1, atol=1e-5)


def test_each_toyshop_word_is_one_token_and_any_text_is_encoded(processor, held_out):
    tokenizer = processor.tokenizer
    for title in held_out[0][:50]:
        assert len(tokenizer(title).input_ids) == len(title.split()) + 2
    ids = tokenizer("Zürich 1995: 東京 & friends").input_ids
    assert tokenizer.eos_token_id not in ids[1:-1]  # nothing is unknown
    assert len(tokenizer("a" * 500, truncation=True).input_ids) == tokenizer.model_max_length


def test_text_is_pooled_at_its_end_whatever_the_padding(model, processor):
    tokenizer = processor.tokenizer
    assert model.config.text_config.eos_token_id == tokenizer.eos_token_id != 2
    short, long = "red ball", "acora retro red cotton ball for garden"
    together = tokenizer([short, long], padding=True, return_tensors="pt")
    alone = tokenizer([short], return_tensors="pt")
    with torch.no_grad():
        padded = model.get_text_features(**together).pooler_output[0]
        plain = model.get_text_features(**alone).pooler_output[0]
    torch.testing.assert_close(padded, plain, atol=1e-5, rtol=1e-4)


def test_pretraining_is_seeded_and_the_folder_is_what_it_would_write(model, monkeypatch):
    monkeypatch.setattr(pretrain_toyshop_clip, "TRAINING_ITEMS", 256)
    first, processor = pretrain_toyshop_clip.pretrain(3, 2)
    second, _ = pretrain_toyshop_clip.pretrain(3, 2)
    for name, weight in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], weight)
    shapes = {name: weight.shape for name, weight in first.state_dict().items()}
    assert shapes == {name: weight.shape for name, weight in model.state_dict().items()}
    shipped = CLIPProcessor.from_pretrained(TOYSHOP_CLIP)
    assert processor.tokenizer.get_vocab() == shipped.tokenizer.get_vocab()
