"""What does Ray add to a trial? Compares studies of few and more trials with the trials' own times.

    python benchmarks/ray_overhead.py

`studies/ablation_peft.py` on toyshop, one trial at a time, without a search. The trials' own times
are those of stages and evaluations in their rows. The rest is the study's start and end, and a part
per trial: the difference of two studies over the difference of trials. Workers start once per
study. One worker per trial, and two.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from _bench import Row, record

from perpeft_ray.train.workspace import prepare

TRIALS = {1: (2, 6), 2: (2, 6)}
"""Numbers of trials of the two studies, by `--workers`."""


def main() -> None:
    """Measure and record."""
    rows = []
    for workers, counts in TRIALS.items():
        with tempfile.TemporaryDirectory() as scratch:
            prepare("toyshop", "toyshop-clip", Path(scratch) / ".cache")
            few, more = (study_of(count, workers, Path(scratch)) for count in counts)
        a_trial = (more - few) / (counts[1] - counts[0])
        case = f"toyshop, workers {workers}"
        rows += [
            Row("ray_overhead", case, "seconds a trial beyond its own", a_trial, "s"),
            Row("ray_overhead", case, "seconds of start and end", few - counts[0] * a_trial, "s"),
        ]
    record(rows)


def study_of(trials: int, workers: int, storage: Path) -> float:
    """Seconds of a study of this many trials, without the trials' own."""
    name = f"study-{workers}-{trials}"
    # New seeds, so that no trial is found in a cache.
    seeds = [str(1000 * trials + number) for number in range(trials)]
    command = [sys.executable, "studies/ablation_peft.py", "--study", name]
    command += ["--storage", str(storage)]
    command += ["--methods", "without_mm", "--seeds", *seeds, "--workers", str(workers)]
    command += ["--parallel-workers", "0", "--search.max-concurrent", "1", "--train.lr", "3e-3"]
    command += ["--train.epochs", "1", "--train.personal-epochs", "1"]
    command += ["--peft.variant", "iisan", "--grouping.groups", "4"]
    command += ["--loss.conditioning-weight", "0.5"]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    whole = time.perf_counter() - started
    rows = pd.read_parquet(storage / name / "trials")
    if set(rows["status"]) != {"COMPLETE"}:
        raise RuntimeError(f"trials must end COMPLETE, but are {rows['status'].tolist()}")
    parts = ["stage1_seconds", "stage2_seconds", "stage3_seconds", "evaluate_seconds"]
    print(f"{name}: {whole:.1f} s, {len(rows)} trials", flush=True)
    return whole - float(rows[parts].sum().sum())


if __name__ == "__main__":
    main()
