"""Is preparing data linear in time and bounded in memory? Two sizes, each in its own process.

    python benchmarks/prepare.py                                     # as in the finding
    python benchmarks/prepare.py --categories 2000 --catalogues 500  # a look
    python benchmarks/prepare.py --categories --ray                  # only the store, by Ray Data

A category of the Amazon Reviews 2023 is generated in its published form (1 KB a review, as the
published ones have on average; 10 reviews an item; popularity and activity by a power law) and
prepared without images: the network is no part of this. A catalogue store is built from items with
a title and a JPEG of 500 × 500 pixels, as Amazon's `large` images are at most; 50 different
pictures are linked to by all items, so that each is decoded anew. Peak memory is the system's count
(ru_maxrss) of the process that writes.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from _bench import Row, in_fresh_process, record
from PIL import Image

from perpeft_ray.encoder.source import TOYSHOP_CLIP

REVIEWS_PER_ITEM = 10
PICTURES = 50
_TEXT = "Works as it should; the colour is a little darker than on the picture. " * 10


@dataclass(frozen=True)
class Sizes:
    """Sizes to measure."""

    categories: tuple[int, ...] = (20_000, 200_000)
    """Items of each category of raw reviews; ten times as many reviews."""
    memory_gb: float = 1.0
    """What DuckDB may hold."""
    catalogues: tuple[int, ...] = (1_000, 10_000)
    """Items of each catalogue store."""
    pixels: int = 224
    """Side of the images that the encoder takes: 224 as CLIP ViT-B/32's, 24 as toyshop-clip's."""
    ray: bool = False
    """Build the store by Ray Data, whatever the number of items."""
    folder: Path = Path(tempfile.gettempdir())
    """Where the raw files are generated; 2.5 GB for 200,000 items."""


def main(sizes: Sizes) -> None:
    """Measure and record every size."""
    rows = []
    for items in sizes.categories:
        with tempfile.TemporaryDirectory(dir=sizes.folder) as scratch:
            write_category(Path(scratch) / "raw", items)
            case = f"amazon2023, DuckDB within {sizes.memory_gb:g} GB, {items:,} items"
            rows += measured(case, "category", scratch, str(sizes.memory_gb))
    for items in sizes.catalogues:
        with tempfile.TemporaryDirectory() as scratch:
            write_folder(Path(scratch) / "shop", items)
            write_encoder(Path(scratch) / "encoder", sizes.pixels)
            where = "by Ray Data" if sizes.ray else "in one process"
            case = f"catalogue store, {sizes.pixels} pixels a side, {where}, {items:,} items"
            rows += measured(case, "catalogue", scratch, str(int(sizes.ray)))
    record(rows)


def measured(case: str, work: str, *arguments: str) -> list[Row]:
    """A case in its own process."""
    found = in_fresh_process(__file__, work, *arguments, keep_memory=False)
    print(f"{case}: {found.pop('result')}", flush=True)
    return [
        Row("prepare", case, name, value, "MB" if name == "peak memory" else "s")
        for name, value in found.items()
    ]


def measure(work: str, scratch: Path, option: float) -> dict[str, float | str]:
    """What a work gives and takes in this process."""
    with contextlib.ExitStack() as stack:
        if work == "catalogue" and option:
            from perpeft_ray.config import StudyConfig
            from perpeft_ray.study.runtime import ray_for

            stack.enter_context(ray_for(StudyConfig(), scratch / "log"))
        run = {"category": category_work, "catalogue": store_work}[work](scratch, option)
        started, busy = time.perf_counter(), time.process_time()
        return {
            "result": run(),
            "seconds": time.perf_counter() - started,
            "CPU seconds": time.process_time() - busy,
            "peak memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def category_work(scratch: Path, memory_gb: float) -> Callable[[], str]:
    """Prepares raw reviews and checks the result."""
    from perpeft_ray.data.prepare.amazon2023 import Selection, prepare_amazon2023
    from perpeft_ray.data.prepare.report import findings, report_on

    raw, out = scratch / "raw", scratch / "out"
    megabytes = sum(file.stat().st_size for file in raw.iterdir()) / 1e6

    def run() -> str:
        prepare_amazon2023(raw, "Made_Up", out, Selection(), images=False, memory_gb=memory_gb)
        return f"of {megabytes:,.0f} MB kept {findings(report_on(out, memory_gb=memory_gb))[0]}"

    return run


def store_work(scratch: Path, ray: float) -> Callable[[], str]:
    """Builds the catalogue store; this process writes it."""
    from perpeft_ray.data.catalogue import build_catalogue
    from perpeft_ray.data.interactions import load_folder
    from perpeft_ray.data.item_arrays import in_this_process
    from perpeft_ray.encoder.preprocess import FoundationPreprocessor
    from perpeft_ray.study.ray_items import on_ray

    dataset = load_folder(scratch / "shop", "")
    preprocessor = FoundationPreprocessor(str(scratch / "encoder"))
    item_map = on_ray if ray else in_this_process

    def run() -> str:
        catalogue = build_catalogue(dataset, preprocessor, scratch / "cache", item_map)
        size = sum(file.stat().st_size for file in catalogue.folder.iterdir())
        return f"{size / 1e6:,.0f} MB"

    return run


def write_category(folder: Path, items: int) -> None:
    """Write `Made_Up.jsonl` and `meta_Made_Up.jsonl.gz`."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    reviews = items * REVIEWS_PER_ITEM
    users = reviews // 8
    with (folder / "Made_Up.jsonl").open("w") as file:
        for start in range(0, reviews, 100_000):
            count = min(100_000, reviews - start)
            # A square of uniform numbers: few users and items have many reviews, most have few.
            user = (users * rng.random(count) ** 2).astype(int).tolist()
            item = (items * rng.random(count) ** 2).astype(int).tolist()
            times = rng.integers(1_000_000_000_000, 1_690_000_000_000, count).tolist()
            stars = rng.integers(1, 6, count).tolist()
            file.writelines(
                f'{{"rating": {star}.0, "title": "Fine", "text": "{_TEXT}", "images": [], '
                f'"asin": "B{i:09d}", "parent_asin": "B{i:09d}", "user_id": "A{u:027d}", '
                f'"timestamp": {t}, "helpful_vote": 0, "verified_purchase": true}}\n'
                for star, u, i, t in zip(stars, user, item, times, strict=True)
            )
    with gzip.open(folder / "meta_Made_Up.jsonl.gz", "wt", compresslevel=1) as file:
        for i in range(items):
            address = f"https://m.media-amazon.com/images/I/{i:011d}.jpg"
            picture = {"thumb": address, "large": address, "variant": "MAIN", "hi_res": None}
            row = {
                "main_category": "Made Up",
                "title": f"Item {i} of many, in a box of {i % 12 + 1}" if i % 50 else "",
                "features": [_TEXT],
                "description": [_TEXT],
                "images": [picture] * 4,
                "details": {"Package Dimensions": "7 x 5 x 3 inches"},
                "parent_asin": f"B{i:09d}",
            }
            file.write(json.dumps(row) + "\n")


def write_encoder(folder: Path, pixels: int) -> None:
    """toyshop-clip with images of another size: only its preprocessing is used."""
    shutil.copytree(TOYSHOP_CLIP, folder)
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    settings["image_processor"] |= {
        "crop_size": {"height": pixels, "width": pixels},
        "size": {"shortest_edge": pixels},
    }
    file.write_text(json.dumps(settings))


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
        print(json.dumps(measure(sys.argv[2], Path(sys.argv[3]), float(sys.argv[4]))))
    else:
        main(tyro.cli(Sizes, description=__doc__))
