"""What preparing a category of the Amazon Reviews 2023 takes: time and memory at 1× and 10×.

    python benchmarks/prepare_amazon2023.py                       # 20,000 and 200,000 items
    python benchmarks/prepare_amazon2023.py --items 2000 20000    # a look

Raw files of the published form are generated under a temporary folder (1 KB a review, as the
published ones have on average; 10 reviews an item; popularity and activity by a power law) and
removed. Each size is prepared in a process of its own, whose peak memory is the system's count
(ru_maxrss). Images are not fetched: the network is no part of this.
"""

from __future__ import annotations

import gzip
import json
import resource
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro
from _growth import Row, in_own_process, show

REVIEWS_PER_ITEM = 10
_TEXT = "Works as it should; the colour is a little darker than on the picture. " * 10


@dataclass(frozen=True)
class Sizes:
    """Sizes to measure."""

    items: tuple[int, ...] = (20_000, 200_000)
    """Items of each category; ten times as many reviews."""
    memory_gb: float = 1.0
    """What DuckDB may hold."""
    folder: Path = Path(tempfile.gettempdir())
    """Where the raw files are generated; 2.5 GB for 200,000 items."""
    figure: Path = Path("results/bench/prepare_amazon2023.png")
    """Where to draw the rows."""


def main(sizes: Sizes) -> None:
    """Measure and show every size."""
    rows = []
    for items in sizes.items:
        with tempfile.TemporaryDirectory(dir=sizes.folder) as scratch:
            write_category(Path(scratch) / "raw", items)
            rows.append(in_own_process(__file__, [scratch, str(items), str(sizes.memory_gb)]))
    show(f"perpeft prepare amazon2023, DuckDB within {sizes.memory_gb:g} GB", rows, sizes.figure)


def measure(scratch: Path, items: int, memory_gb: float) -> Row:
    """Prepare the category and check the result, in this process."""
    from perpeft_ray.data.prepare.amazon2023 import Selection, prepare_amazon2023
    from perpeft_ray.data.prepare.report import findings, report_on

    raw, out = scratch / "raw", scratch / "out"
    megabytes = sum(file.stat().st_size for file in raw.iterdir()) / 1e6
    started, busy = time.perf_counter(), time.process_time()
    prepare_amazon2023(raw, "Made_Up", out, Selection(), images=False, memory_gb=memory_gb)
    peak = _peak_mb()
    kept = findings(report_on(out))[0]
    seconds, cpu = time.perf_counter() - started, time.process_time() - busy
    reviews = items * REVIEWS_PER_ITEM
    note = f"{reviews:,} reviews in {megabytes:,.0f} MB; kept {kept}"
    return Row(items, seconds, cpu, peak, _peak_mb(), note)


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


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        folder, count, memory = sys.argv[2:]
        print(json.dumps(asdict(measure(Path(folder), int(count), float(memory)))))
    else:
        main(tyro.cli(Sizes, description=__doc__))
