"""How close do the towers come to the machine's matrix products? A ViT-B/32-shaped CLIP.

    python benchmarks/arithmetic.py

The peak is measured in the same run, as the best of the towers' shapes, for each dtype. Fractions
are of the bfloat16 peak, whatever the step computes in: FLOPs of the matrix products done, by
torch's counter, over the time of the whole step (sampling, pixels, SASRec and the optimiser too).
The authors' step with ViT-B/32 took 20 to 27 s on another two-core machine; 23.5 s is used here.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from _bench import Row, record, seconds
from _shops import VIT_B_32
from _steps import Bench, matrix_flops, open_bench, shop_and_clip

AUTHORS_STEP = 23.5
SHAPES = [(m, k, n) for m in (400, 4000) for k, n in ((768, 768), (768, 3072), (3072, 768))]
SHAPES += [(4000, 512, 2048), (4000, 2048, 512)]


def main() -> None:
    """Measure and record part by part, since a step takes long."""
    peaks = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        peaks[name] = max(product(dtype, *shape) for shape in SHAPES)
    best = "best of the towers' shapes"
    record([Row("gemm_peak", name, best, peak, "TFLOP/s") for name, peak in peaks.items()])
    peak = peaks["bfloat16"] * 1e12
    with tempfile.TemporaryDirectory() as scratch:
        workspace = shop_and_clip(Path(scratch), VIT_B_32)
        bench = open_bench(workspace, groups=1, dtype="bfloat16")
        record(encoding(bench, peak))
        step = bench.step(1)
        flops = matrix_flops(step)  # warms up, too
        taken = seconds(step, repeats=1, warm_up=0)
        fraction = flops / taken / peak
        case = "ViT-B/32 LoRA, 16 users, bfloat16"
        record(
            [
                Row("train_step", case, "seconds", taken, "s", AUTHORS_STEP),
                Row("train_step", case, "matrix products", flops / 1e12, "TFLOP"),
                Row("train_step", case, "gemm_fraction", fraction, "of bf16 peak", 0.35),
            ]
        )


def product(dtype: torch.dtype, m: int, k: int, n: int) -> float:
    """TFLOP/s of one linear layer."""
    x, weight = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
    taken = seconds(lambda: torch.nn.functional.linear(x, weight), repeats=9)
    return 2 * m * k * n / taken / 1e12


def encoding(bench: Bench, peak: float) -> list[Row]:
    """128 items through the towers with an adapter, as in evaluation."""
    model, items = bench.job.model.eval(), np.arange(1, 129)
    with torch.no_grad():
        encode = lambda: model.embed(items, bench.state.modules[0])  # noqa: E731
        flops = matrix_flops(encode)
        taken = seconds(encode, repeats=3, warm_up=0)
    case = "ViT-B/32 LoRA, 128 items, bfloat16"
    return [
        Row("encode", case, "items/s", len(items) / taken, "items/s"),
        Row("encode", case, "gemm_fraction", flops / taken / peak, "of bf16 peak", 0.50),
    ]


if __name__ == "__main__":
    main()
