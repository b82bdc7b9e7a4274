"""A folder in the data format, small and random, for tests of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

WORDS = ["red", "blue", "lamp", "chair", "oak", "steel", "small", "striped", "round", "tall"]


def write_small_shop(folder: Path, *, users: int = 40, items: int = 30, seed: int = 0) -> Path:
    """Users with 1 to 9 interactions, repeats among them; one item without image, one untitled."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    for item in range(items):
        pixels = rng.integers(0, 256, size=(32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{item}.png")
    titles = [" ".join(rng.choice(WORDS, size=rng.integers(1, 6))) for _ in range(items)]
    images = [f"images/{item}.png" for item in range(items)]
    pd.DataFrame(
        {
            "item_id": [f"i{item}" for item in range(items)],
            "title": [None, *titles[1:]],
            "image": [*images[:-1], None],
        }
    ).to_parquet(folder / "items.parquet")
    lengths = rng.integers(1, 10, size=users)
    lengths[:3] = [1, 2, 3]
    taken = rng.integers(0, items, size=lengths.sum())
    pd.DataFrame(
        {
            "user_id": np.repeat([f"u{user}" for user in range(users)], lengths),
            "item_id": [f"i{item}" for item in taken],
            "timestamp": np.concatenate([np.arange(length) for length in lengths]),
        }
    ).to_parquet(folder / "interactions.parquet")
    return folder
