"""Does bfloat16 in the frozen towers change what a trial finds? NDCG@20 over seeds, both dtypes.

    python benchmarks/bfloat16.py            # 2 seeds
    python benchmarks/bfloat16.py 0 1 2 3 4  # the figures in results/LOG.md

PerPEFT with LoRA on toyshop and its encoder, the same seeds in float32 and in bfloat16. One seed's
two trainings part after a few steps, as those of two seeds do: what the dtype does is their mean.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Literal

from _bench import Row, record

from perpeft_ray.config import StudyConfig
from perpeft_ray.train.trial import run_trial
from perpeft_ray.train.workspace import prepare

DTYPES: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")


def main(seeds: list[int]) -> None:
    """Measure and record."""
    config = StudyConfig().trial(
        "perpeft",
        variant="lora",
        rank=4,
        groups=6,
        conditioning_weight=0.5,
        seed=0,
        learning_rate=3e-3,
        mode="sequential",
    )
    found: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
    with tempfile.TemporaryDirectory() as scratch:
        workspace = prepare("toyshop", "toyshop-clip", Path(scratch))
        for seed in seeds:
            for dtype in DTYPES:
                trial = dataclasses.replace(config, seed=seed, dtype=dtype)
                outcome = run_trial(trial, workspace, lambda record: None, test=True)
                assert outcome.test is not None
                both = (outcome.valid.ndcg_at_20 + outcome.test.ndcg_at_20) / 2
                found[dtype].append(100 * both)
                print(f"seed {seed} {dtype}: {100 * both:.3f}", flush=True)
    means = {dtype: statistics.mean(values) for dtype, values in found.items()}
    differences = [b - a for a, b in zip(*found.values(), strict=True)]
    error = statistics.stdev(differences) / len(seeds) ** 0.5 if len(seeds) > 1 else float("nan")
    case = f"toyshop, PerPEFT LoRA, {len(seeds)} seeds"
    metric = "NDCG@20 x 100, valid and test"
    record(
        [
            Row("bfloat16", f"{case}, float32", metric, means["float32"], ""),
            Row("bfloat16", f"{case}, bfloat16", metric, means["bfloat16"], "", means["float32"]),
            Row("bfloat16", case, "standard error of the difference", error, ""),
        ]
    )


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]] or [0, 1])
