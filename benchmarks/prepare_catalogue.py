"""What building the catalogue store takes: time and memory at 1× and 10× the items.

    python benchmarks/prepare_catalogue.py                     # 1,000 and 10,000 items
    python benchmarks/prepare_catalogue.py --items 500 5000    # a look

Every item has a title and a JPEG of 500 × 500 pixels, as Amazon's `large` images are at most; 50
different pictures are linked to by all items, so that each is decoded anew. Each size is built in a
process of its own.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from _growth import Row, in_own_process, show
from PIL import Image

PICTURES = 50


@dataclass(frozen=True)
class Sizes:
    """Sizes to measure."""

    items: tuple[int, ...] = (1_000, 10_000)
    """Items of each catalogue."""
    encoder: str = "toyshop-clip"
    """Whose preprocessing is done."""
    figure: Path | None = None
    """Where to draw the rows."""


def main(sizes: Sizes) -> None:
    """Measure and show every size."""
    rows = []
    for items in sizes.items:
        with tempfile.TemporaryDirectory() as scratch:
            write_folder(Path(scratch) / "shop", items)
            rows.append(in_own_process(__file__, [scratch, sizes.encoder]))
    show(f"catalogue store for {sizes.encoder}", rows, sizes.figure)


def measure(scratch: Path, encoder: str) -> Row:
    """Build the store, in this process."""
    from perpeft_ray.data.catalogue import build_catalogue
    from perpeft_ray.data.interactions import load_folder
    from perpeft_ray.encoder.preprocess import FoundationPreprocessor

    dataset = load_folder(scratch / "shop", "")
    preprocessor = FoundationPreprocessor(encoder)
    started, busy = time.perf_counter(), time.process_time()
    catalogue = build_catalogue(dataset, preprocessor, scratch / "cache")
    seconds, cpu = time.perf_counter() - started, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = sum(file.stat().st_size for file in catalogue.folder.iterdir()) / 1e6
    return Row(catalogue.num_items, seconds, cpu, peak, peak, f"{size:,.0f} MB store")


def write_folder(folder: Path, items: int) -> None:
    """Write a folder of the data format."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(min(PICTURES, items)):
        rough = rng.integers(0, 256, (25, 25, 3), dtype=np.uint8)
        picture = Image.fromarray(rough).resize((500, 500), Image.Resampling.BICUBIC)
        picture.save(folder / "images" / f"{number}.jpg", quality=85)
    for number in range(PICTURES, items):
        os.link(folder / "images" / f"{number % PICTURES}.jpg", folder / "images" / f"{number}.jpg")
    ids = [f"B{number:09d}" for number in range(items)]
    titles = [f"Item {number} of many, box of {number % 12}" for number in range(items)]
    images = [f"images/{number}.jpg" for number in range(items)]
    pd.DataFrame({"item_id": ids, "title": titles, "image": images}).to_parquet(
        folder / "items.parquet"
    )
    pd.DataFrame({"user_id": ["u"] * 3, "item_id": ids[:3], "timestamp": [1, 2, 3]}).to_parquet(
        folder / "interactions.parquet"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(asdict(measure(Path(sys.argv[2]), sys.argv[3]))))
    else:
        main(tyro.cli(Sizes, description=__doc__))
