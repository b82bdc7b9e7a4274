"""What building the catalogue store takes: time and memory at 1× and 10× the items.

    python benchmarks/prepare_catalogue.py                     # 1,000 and 10,000 items
    python benchmarks/prepare_catalogue.py --items 500 5000    # a look
    python benchmarks/prepare_catalogue.py --ray               # by Ray Data, its start included

Every item has a title and a JPEG of 500 × 500 pixels, as Amazon's `large` images are at most; 50
different pictures are linked to by all items, so that each is decoded anew. Each size is built in a
process of its own; with `--ray`, memory and CPU time are those of the process that writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
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

from perpeft_ray.encoder.source import TOYSHOP_CLIP

PICTURES = 50


@dataclass(frozen=True)
class Sizes:
    """Sizes to measure."""

    items: tuple[int, ...] = (1_000, 10_000)
    """Items of each catalogue."""
    pixels: int = 224
    """Side of the images that the encoder takes: 224 as CLIP ViT-B/32's, 24 as toyshop-clip's."""
    ray: bool = False
    """Prepare items by Ray Data, whatever their number."""
    figure: Path = Path("results/bench/prepare_catalogue.png")
    """Where to draw the rows."""


def main(sizes: Sizes) -> None:
    """Measure and show every size."""
    rows = []
    for items in sizes.items:
        with tempfile.TemporaryDirectory() as scratch:
            write_folder(Path(scratch) / "shop", items)
            write_encoder(Path(scratch) / "encoder", sizes.pixels)
            rows.append(in_own_process(__file__, [scratch, "ray" if sizes.ray else "plain"]))
    where = "by Ray Data" if sizes.ray else "in one process"
    show(f"catalogue store, {sizes.pixels} pixels a side, {where}", rows, sizes.figure)


def measure(scratch: Path, where: str) -> Row:
    """Build the store; this process writes it."""
    from perpeft_ray.config import StudyConfig
    from perpeft_ray.data.catalogue import build_catalogue
    from perpeft_ray.data.interactions import load_folder
    from perpeft_ray.data.item_arrays import in_this_process
    from perpeft_ray.encoder.preprocess import FoundationPreprocessor
    from perpeft_ray.study.ray_items import on_ray
    from perpeft_ray.study.runtime import ray_for

    dataset = load_folder(scratch / "shop", "")
    preprocessor = FoundationPreprocessor(str(scratch / "encoder"))
    with contextlib.ExitStack() as stack:
        if where == "ray":
            stack.enter_context(ray_for(StudyConfig(parallel_workers=0), scratch / "log"))
        started, busy = time.perf_counter(), time.process_time()
        item_map = on_ray if where == "ray" else in_this_process
        catalogue = build_catalogue(dataset, preprocessor, scratch / "cache", item_map)
        seconds, cpu = time.perf_counter() - started, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = sum(file.stat().st_size for file in catalogue.folder.iterdir()) / 1e6
    return Row(catalogue.num_items, seconds, cpu, peak, peak, f"{size:,.0f} MB store")


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
        print(json.dumps(asdict(measure(Path(sys.argv[2]), sys.argv[3]))))
    else:
        main(tyro.cli(Sizes, description=__doc__))
