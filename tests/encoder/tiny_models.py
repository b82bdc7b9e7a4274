"""Tiny random models of every family, with tokenizer and image processor, as folders on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from perpeft_ray.data.catalogue import ItemBatch
from perpeft_ray.encoder.preprocess import FoundationPreprocessor

WORDS = ["red", "oak", "chair", "a", "lamp", "small", "striped", "steel", "vase", "from", "kitchen"]
TITLES = ["red oak chair", "a lamp", "small striped steel vase from a kitchen"]
SIZE = 24
_LAYERS: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
_VISION = {**_LAYERS, "hidden_size": 24, "image_size": SIZE, "patch_size": 8}
_SQUARE = {"height": SIZE, "width": SIZE}


def write_tiny_model(family: str, folder: Path) -> str:
    """Write a model of a family under `folder`; the name that it has as an encoder."""
    torch.manual_seed(0)
    return _WRITERS[family](folder)


def noise_images(*sizes: tuple[int, int]) -> list[Image.Image]:
    """An image of noise of each (width, height)."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, size=(h, w, 3), dtype=np.uint8) for w, h in sizes]
    return [Image.fromarray(array) for array in arrays]


def batch_of(name: str, titles: list[str], images: list[Image.Image]) -> ItemBatch:
    """Items as the store has them for an encoder; all with title and image."""
    preprocessor = FoundationPreprocessor(name)
    tokens = preprocessor.tokens(titles)
    longest = max(map(len, tokens))
    ids = [row + [preprocessor.pad_token_id] * (longest - len(row)) for row in tokens]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in tokens]
    pixels = None
    if preprocessor.image_size:
        pixels = torch.from_numpy(np.stack([preprocessor.image(image) for image in images]))
    there = torch.ones(len(titles), dtype=torch.bool)
    return ItemBatch(pixels, torch.tensor(ids), torch.tensor(mask), there, there)


def _clip(folder: Path) -> str:
    """With an end-of-text token that is not the highest id."""
    text = {"vocab_size": _words(folder, "[EOS]"), "max_position_embeddings": 20}
    ends = {"eos_token_id": 2, "bos_token_id": 3, "pad_token_id": 0}
    config = tf.CLIPConfig(
        text_config={**_LAYERS, **text, **ends, "eos_token_id": 3},
        vision_config=_VISION,
        projection_dim=12,
    )
    tf.CLIPModel(config).save_pretrained(folder)
    tf.CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=_SQUARE).save_pretrained(
        folder
    )
    return str(folder)


def _siglip(folder: Path) -> str:
    text = {"vocab_size": _words(folder, None), "max_position_embeddings": 20}
    config = tf.SiglipConfig(text_config={**_LAYERS, **text}, vision_config=_VISION)
    # Both halves end in one space, so their widths must be alike.
    config.text_config.projection_size = config.vision_config.hidden_size
    tf.SiglipModel(config).save_pretrained(folder)
    tf.SiglipImageProcessorPil(size=_SQUARE).save_pretrained(folder)
    return str(folder)


def _chinese_clip(folder: Path) -> str:
    config = tf.ChineseCLIPConfig(
        text_config={**_LAYERS, "vocab_size": _bert_words(folder)},
        vision_config=_VISION,
        projection_dim=12,
    )
    tf.ChineseCLIPModel(config).save_pretrained(folder)
    tf.ChineseCLIPImageProcessorPil(size=_SQUARE, do_center_crop=False).save_pretrained(folder)
    return str(folder)


def _align(folder: Path) -> str:
    """A BERT, and an EfficientNet of one block a stage."""
    vision = {
        "image_size": SIZE,
        "in_channels": [32, 8],  # the first is the stem's
        "out_channels": [8, 16],
        "kernel_sizes": [3, 3],
        "strides": [1, 2],
        "num_block_repeats": [1, 1],
        "expand_ratios": [1, 2],
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "depthwise_padding": [],
    }
    config = tf.AlignConfig(
        text_config={**_LAYERS, "vocab_size": _bert_words(folder)},
        vision_config=vision,
        projection_dim=12,
    )
    tf.AlignModel(config).save_pretrained(folder)
    tf.EfficientNetImageProcessorPil(
        size=_SQUARE,
        do_center_crop=True,
        crop_size=_SQUARE,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(folder)
    return str(folder)


def _text(folder: Path) -> str:
    config = tf.BertConfig(**_LAYERS, vocab_size=_bert_words(folder))
    tf.BertModel(config).save_pretrained(folder)
    return f"text:{folder}"


def _pair(folder: Path) -> str:
    """A BERT and a ViT, which has a class token."""
    image = folder / "image"
    tf.ViTModel(tf.ViTConfig(**_VISION)).save_pretrained(image)
    tf.ViTImageProcessorPil(size=_SQUARE).save_pretrained(image)
    return f"pair:{_text(folder / 'text').removeprefix('text:')},{image}"


def _convolutional_pair(folder: Path) -> str:
    image = folder / "image"
    config = tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1])
    tf.ResNetModel(config).save_pretrained(image)
    tf.ViTImageProcessorPil(size=_SQUARE).save_pretrained(image)
    return f"pair:{_text(folder / 'text').removeprefix('text:')},{image}"


_WRITERS = {
    "clip": _clip,
    "siglip": _siglip,
    "chinese_clip": _chinese_clip,
    "align": _align,
    "text": _text,
    "pair": _pair,
    "convolutional_pair": _convolutional_pair,
}


def _bert_words(folder: Path) -> int:
    """A BERT tokenizer of whole words; how many tokens it knows."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = tf.BertTokenizerFast(vocab={word: n for n, word in enumerate(words)})  # type: ignore[attr-defined]  # transformers adds it
    tokenizer.save_pretrained(folder)
    return len(words)


def _words(folder: Path, end: str | None) -> int:
    """A tokenizer of whole words that puts `end` behind them; how many tokens it knows."""
    from tokenizers.processors import TemplateProcessing

    words = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", *WORDS]
    tokens = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    if end is not None:
        tokens.post_processor = TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, words.index(end))]
        )
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="[PAD]", unk_token="[UNK]", model_max_length=20
    )
    tokenizer.save_pretrained(folder)
    return len(words)
