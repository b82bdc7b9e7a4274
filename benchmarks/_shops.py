"""Encoders and catalogues for benchmarks, written to a folder from a seed.

Encoders are random models of transformers, CLIPs of `write_clip` with a BPE vocabulary of the
catalogue's own words. Times do not depend on weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from perpeft_ray.data.split import Histories, Split
from perpeft_ray.train.workspace import Workspace, write_split

_SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u")]


@dataclass(frozen=True)
class Clip:
    """Sizes of a CLIP."""

    pixels: int
    patch: int
    image_width: int
    text_width: int
    layers: int
    heads: int
    projection: int


VIT_B_32 = Clip(224, 32, 768, 512, 12, 12, 512)
SMALL = Clip(64, 16, 128, 128, 4, 4, 64)
"""Both towers 4 layers of width 128, images of 64 pixels in patches of 16: 17 tokens an image."""


def write_clip(folder: Path, clip: Clip, titles: list[str]) -> Path:
    """Write a random CLIP of these sizes with a BPE tokenizer of the titles."""
    import torch
    import transformers as tf
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[UNK]", "[BOS]", "[EOS]"]
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(titles, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    tf.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=77
    ).save_pretrained(folder)
    torch.manual_seed(0)
    image = _layers(clip, clip.image_width, clip.heads)
    text = _layers(clip, clip.text_width, clip.text_width * clip.heads // clip.image_width)
    config = tf.CLIPConfig(
        text_config={
            **text,
            "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": 77,
            "eos_token_id": 3,
            "bos_token_id": 2,
            "pad_token_id": 0,
        },
        vision_config={**image, "image_size": clip.pixels, "patch_size": clip.patch},
        projection_dim=clip.projection,
    )
    tf.CLIPModel(config).save_pretrained(folder)
    square = {"height": clip.pixels, "width": clip.pixels}
    tf.CLIPImageProcessorPil(size={"shortest_edge": clip.pixels}, crop_size=square).save_pretrained(
        folder
    )
    return folder


def write_shop(folder: Path, users: int, items: int, mean_length: int = 30) -> list[str]:
    """Write a catalogue in the data format; returns the items' titles.

    Titles have 5 to 11 words (8 to 16 tokens); all items link to 64 pictures. Users have
    0.2 to 1.7 times `mean_length` interactions, the popularity of items falls off as a square.
    """
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for number in range(64):
        rough = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        picture = Image.fromarray(rough).resize((224, 224), Image.Resampling.BICUBIC)
        picture.save(folder / "images" / f"{number}.jpg", quality=85)
    words = ["".join(rng.choice(_SYLLABLES, 2)) for _ in range(400)]
    titles = [" ".join(rng.choice(words, rng.integers(5, 12))) for _ in range(items)]
    ids = np.array([f"i{number:07d}" for number in range(items)])
    images = [f"images/{number % 64}.jpg" for number in range(items)]
    pd.DataFrame({"item_id": ids, "title": titles, "image": images}).to_parquet(
        folder / "items.parquet"
    )
    low, high = max(5, int(0.2 * mean_length)), max(6, int(1.7 * mean_length))
    lengths = rng.integers(low, high + 1, users)
    taken = (items * rng.random(lengths.sum()) ** 2).astype(np.int64)
    taken[: min(items, len(taken))] = np.arange(min(items, len(taken)))
    pd.DataFrame(
        {
            "user_id": np.repeat([f"u{number:07d}" for number in range(users)], lengths),
            "item_id": ids[taken],
            "timestamp": np.concatenate([np.arange(length) for length in lengths]),
        }
    ).to_parquet(folder / "interactions.parquet")
    return titles


def clip_workspace(work: Path, users: int, items: int, *, small: bool) -> Workspace:
    """A random CLIP ViT-B/32 and a catalogue of random images and titles of 8 to 24 tokens."""
    import torch
    import transformers as tf

    folder = work / f"clip-{items}"
    if not (folder / "encoder" / "config.json").exists():
        torch.manual_seed(0)
        config = tf.CLIPConfig()
        if small:
            few = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
            few |= {"intermediate_size": 64}
            config = tf.CLIPConfig(
                text_config=few, vision_config={**few, "image_size": 64}, projection_dim=16
            )
        tf.CLIPModel(config).save_pretrained(folder / "encoder")
        vision: Any = config.vision_config
        side = vision.image_size
        (folder / "encoder" / "preprocessor_config.json").write_text(
            json.dumps(
                {
                    "image_processor_type": "CLIPImageProcessor",
                    "size": {"shortest_edge": side},
                    "crop_size": {"height": side, "width": side},
                    "do_normalize": True,
                    "do_rescale": True,
                    "image_mean": [0.48, 0.46, 0.41],
                    "image_std": [0.27, 0.26, 0.28],
                }
            )
        )
    side = json.loads((folder / "encoder" / "config.json").read_text())["vision_config"][
        "image_size"
    ]
    return _random_workspace(
        folder, str(folder / "encoder"), users, items, side, 49_407, 77, (8, 24)
    )


def text_workspace(
    work: Path, minilm: Path | None, users: int, items: int, *, small: bool
) -> Workspace:
    """MiniLM, or a random model of its shape, and titles as long as those of Amazon Scientific."""
    import transformers as tf

    folder = work / f"minilm-{items}"
    encoder = minilm or folder / "encoder"
    if not (encoder / "config.json").exists():
        layers = 3 if small else 6
        config = tf.BertConfig(
            hidden_size=384,
            num_hidden_layers=layers,
            num_attention_heads=12,
            intermediate_size=1536,
        )
        tf.BertModel(config).save_pretrained(encoder)
    return _random_workspace(folder, f"text:{encoder}", users, items, 0, 102, 128, (12, 44))


def _random_workspace(
    folder: Path,
    encoder: str,
    users: int,
    items: int,
    side: int,
    end: int,
    most: int,
    lengths: tuple[int, int],
) -> Workspace:
    """Random users, titles and images of `side` pixels (0: none), written where missing."""
    rng = np.random.default_rng(0)
    split, catalogue = folder / "split", folder / "catalogue"
    if not split.exists():
        counts = rng.integers(lengths[0], lengths[1] + 1, items + 1).astype(np.int32)
        ids = rng.integers(1000, 20_000, (items + 1, most)).astype(np.int32)
        ids[np.arange(most) >= counts[:, None]] = 0
        ids[np.arange(items + 1), counts - 1] = end
        catalogue.mkdir(parents=True)
        arrays: dict[str, Any] = {
            "token_ids": ids,
            "token_counts": counts,
            "pixel_row": np.arange(items + 1, dtype=np.int32) * bool(side),
            "has_title": np.arange(items + 1) > 0,
        }
        if side:
            shape = (items + 1, 3, side, side)
            arrays["pixels"] = np.frombuffer(rng.bytes(int(np.prod(shape))), np.uint8).reshape(
                shape
            )
        for name, array in arrays.items():
            np.save(catalogue / f"{name}.npy", array)
        history = rng.integers(8, 20, users)
        known = (1 + items * rng.random(int(history.sum())) ** 2).astype(np.int32)
        one_each = np.arange(users + 1)
        written = folder / "split.part"
        written.mkdir()
        write_split(
            Split(
                user_ids=np.array([f"u{number}" for number in range(users)], dtype=object),
                item_ids=np.array([f"i{number}" for number in range(items)], dtype=object),
                train=Histories(np.concatenate([[0], np.cumsum(history)]), known),
                validation=Histories(one_each, rng.integers(1, items + 1, users, np.int32)),
                test_item=rng.integers(1, items + 1, users, np.int32),
            ),
            written,
        )
        written.rename(split)
    return Workspace(
        encoder=encoder,
        split=split,
        catalogue=catalogue,
        features=folder / "features",
        unfinished=folder / "stage1",
        stages=folder / "stage1",
        trials=folder / "trials",
        fingerprint=f"random {items}",
        num_users=users,
        num_items=items,
    )


def _layers(clip: Clip, width: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": clip.layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }
