"""The authors' small case: both towers 4 layers, width 128; 300 users x 500 items with images.

    python benchmarks/small_clip.py

Images of 64 pixels in patches of 16 (17 tokens; the patch size of the authors' run is not known to
us), BPE vocabulary, titles of 8 to 16 tokens, LoRA r=4, 16 users a step, T = 10. References: the
authors' program, measured by others on two quiet cores of another machine. `input` is
the share of a stage-1 step that sampling, padding, deduplication and pixel fetch take.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from _bench import Row, record, seconds
from _shops import SMALL
from _steps import Bench, open_bench, shop_and_clip

from perpeft_ray.data.catalogue import Catalogue

AUTHORS = {"stage-1 step": 0.57, "stage-3 step": 0.69, "evaluation": 8.3}


def main() -> None:
    """Measure and record."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        workspace = shop_and_clip(Path(scratch), SMALL)
        for dtype in ("auto", "float32", "bfloat16"):
            bench = open_bench(workspace, dtype=dtype)
            works = {
                "stage-1 step": bench.step(1),
                "stage-3 step": bench.step(3),
                "evaluation": bench.evaluation(),
            }
            case = f"{dtype} ({bench.dtype})" if dtype == "auto" else dtype
            for name, work in works.items():
                taken = seconds(work, repeats=3 if name == "evaluation" else 9)
                full = "evaluation of 300 users, 8 groups" if name == "evaluation" else name
                rows.append(Row("small_clip", case, full, taken, "s", AUTHORS[name]))
                if name == "stage-1 step":
                    share = inputs(bench, Catalogue.open(workspace.catalogue)) / taken
                    rows.append(Row("input", f"small CLIP, {case}", "share of a step", share, ""))
    record(rows)


def inputs(bench: Bench, catalogue: Catalogue) -> float:
    """Seconds of all that a step does before its first matrix product."""
    job = bench.job
    users, rng = job.sampler.trainable_users[:16], np.random.default_rng(0)

    def prepare() -> None:
        batch = job.sampler.sample(users, rng, pool=None, weight=0.0)
        parts = np.stack([batch.inputs, batch.positives, batch.negatives])
        items, _ = np.unique(parts, return_inverse=True)
        catalogue.batch(items[1:])

    return seconds(prepare, repeats=21)


if __name__ == "__main__":
    main()
