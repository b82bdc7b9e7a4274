"""Does bfloat16 in the frozen towers change NDCG@20? Compares both dtypes over seeds.

    python studies/bfloat16.py                     # two seeds, four minutes on one core
    python studies/bfloat16.py --seeds 0 1 2 3 4   # five

PerPEFT with LoRA on toyshop and its encoder, the same seeds in float32 and in bfloat16. The two
trainings of a seed diverge after a few steps, like two seeds; the mean shows the dtype's effect.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perpeft_ray.cli import parse, run
from perpeft_ray.config import StudyConfig
from perpeft_ray.config.rules import distinct

DTYPES: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")


@dataclass(frozen=True)
class Dtypes:
    """Options."""

    seeds: tuple[int, ...] = (0, 1)
    """Training seeds."""


def main() -> None:
    """NDCG@20 of the same seeds in float32 and in bfloat16."""
    seeds = parse(Dtypes, description=__doc__).seeds
    distinct("seeds", seeds)
    from perpeft_ray.train.trial import run_trial
    from perpeft_ray.train.workspace import prepare

    config = StudyConfig().trial(
        "perpeft",
        variant="lora",
        rank=4,
        groups=6,
        conditioning_weight=0.5,
        seed=0,
        learning_rate=3e-3,
    )
    found: dict[Literal["float32", "bfloat16"], list[float]] = {dtype: [] for dtype in DTYPES}
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
    for dtype, mean in means.items():
        print(f"{dtype}: mean NDCG@20 x 100 of valid and test {mean:.3f} ({len(seeds)} seeds)")
    difference = means["bfloat16"] - means["float32"]
    print(f"bfloat16 minus float32: {difference:+.3f}, standard error {error:.3f}")


if __name__ == "__main__":
    run(main)
