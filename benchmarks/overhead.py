"""What do a study, its checkpoints and Ray add to trials?

    python benchmarks/overhead.py                    # all three parts
    python benchmarks/overhead.py --parts checkpoints

`study`: trials that share one stage 1, in one process, on toyshop with LoRA; the bound is 1.15 x
(stage 1 + N x stage 3) of the trials' own training and evaluation.
`checkpoints`: time and size of writing one after every epoch, against the epoch, in one process.
`ray`: `studies/ablation_peft.py` on toyshop, one trial at a time and without a search, by one and
two workers. The trials' own times are those of stages and evaluations in their rows. The rest is
the study's start and end, and a part per trial: the difference of two studies over the difference
of trials. Workers start once per study.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import pandas as pd
import torch
import tyro
from _bench import Row, record

from perpeft_ray.config import StudyConfig, TrainSettings, TrialConfig, Variant
from perpeft_ray.train import fit
from perpeft_ray.train.checkpoint import Checkpoints
from perpeft_ray.train.epoch import train_epoch
from perpeft_ray.train.evaluation import evaluate
from perpeft_ray.train.trial import run_trial
from perpeft_ray.train.workspace import prepare

Part = Literal["study", "checkpoints", "ray"]
SHARING = 4
"""Trials over one stage 1."""
FEW, MORE = 2, 6
"""Trials of the two studies on Ray."""


def main(parts: tuple[Part, ...] = ("study", "checkpoints", "ray")) -> None:
    """Measure and record the given parts."""
    if "study" in parts:
        record(over_one_stage_one())
    if "checkpoints" in parts:
        torch.set_num_threads(1)
        record([*of_checkpoints("lora", 6), *of_checkpoints("iisan", 8)])
    if "ray" in parts:
        record([*of_ray(1), *of_ray(2)])


def trial(variant: Variant, groups: int, epochs: int, personal_epochs: int) -> TrialConfig:
    """A trial of PerPEFT on toyshop."""
    settings = TrainSettings(epochs=epochs, personal_epochs=personal_epochs)
    return StudyConfig(train=settings).trial(
        "perpeft",
        variant=variant,
        rank=4,
        groups=groups,
        conditioning_weight=0.5,
        seed=0,
        learning_rate=1.5e-3,
    )


def over_one_stage_one() -> list[Row]:
    """Trials of which the first trains stage 1, and the others find it in the cache."""
    config = trial("lora", 4, 4, 2)
    with tempfile.TemporaryDirectory() as scratch:
        workspace = prepare("toyshop", "toyshop-clip", Path(scratch))
        stage1 = own = 0.0
        started = time.perf_counter()
        for number in range(SHARING):
            changed = dataclasses.replace(config, conditioning_weight=0.25 * (number + 1))
            outcome = run_trial(changed, workspace, lambda record: None, test=True)
            stage1 = outcome.stage1_seconds  # of the one that trained it, also where it was found
            own += outcome.stage2_seconds + outcome.stage3_seconds + outcome.evaluate_seconds
        whole = time.perf_counter() - started
    case = f"{SHARING} trials over one stage 1"
    return [
        Row("study_overhead", case, "seconds", whole, "s"),
        Row("study_overhead", case, "stage 1 + N x the rest", stage1 + own, "s"),
        Row("study_overhead", case, "share of that", whole / (stage1 + own), "", 1.15),
    ]


def of_checkpoints(variant: Variant, groups: int) -> list[Row]:
    """One trial of 1 + 4 epochs, which writes a checkpoint after each."""
    spent: dict[str, list[tuple[float, float]]] = {"epoch": [], "checkpoint": []}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            out = function(*arguments, **named)
            spent[name].append((time.perf_counter() - wall, time.process_time() - cpu))
            return out

        return run

    sizes: list[int] = []
    with tempfile.TemporaryDirectory(prefix="perpeft-checkpoints-") as scratch:
        workspace = prepare("toyshop", "toyshop-clip", Path(scratch) / "cache")
        checkpoints = Path(scratch) / "trial"

        def look(record: Any) -> None:
            latest = checkpoints.glob("*/stage.safetensors")
            sizes.append(sum(file.stat().st_size for file in latest))

        with (
            patch.object(fit, "train_epoch", timed("epoch", train_epoch)),
            patch.object(fit, "evaluate", timed("epoch", evaluate)),
            patch.object(Checkpoints, "save", timed("checkpoint", Checkpoints.save)),
        ):
            config = trial(variant, groups, 1, 4)
            run_trial(config, workspace, look, test=False, checkpoints=checkpoints)
    case = f"toyshop, {variant}, {groups} groups"
    rows = [Row("checkpoints", case, "size", sizes[-1] / 2**20, "MB")]
    for place, clock in enumerate(("wall", "CPU")):
        of = {name: sum(pair[place] for pair in pairs) for name, pairs in spent.items()}
        each = 1000 * of["checkpoint"] / len(sizes)
        share = of["checkpoint"] / of["epoch"]
        rows += [
            Row("checkpoints", case, f"{clock} time of writing one", each, "ms"),
            Row("checkpoints", case, f"share of an epoch, {clock} time", share, ""),
        ]
    return rows


def of_ray(workers: int) -> list[Row]:
    """Two studies that differ only in their number of trials."""
    with tempfile.TemporaryDirectory() as scratch:
        prepare("toyshop", "toyshop-clip", Path(scratch) / ".cache")
        few, more = (study_of(count, workers, Path(scratch)) for count in (FEW, MORE))
    a_trial = (more - few) / (MORE - FEW)
    case = f"toyshop, workers {workers}"
    return [
        Row("ray_overhead", case, "seconds per trial beyond its own", a_trial, "s"),
        Row("ray_overhead", case, "seconds of start and end", few - FEW * a_trial, "s"),
    ]


def study_of(trials: int, workers: int, storage: Path) -> float:
    """Seconds of a study of this many trials, without the trials' own."""
    name = f"study-{workers}-{trials}"
    # New seeds, so that no trial is found in a cache.
    seeds = [str(1000 * trials + number) for number in range(trials)]
    command = [sys.executable, "studies/ablation_peft.py", "--study", name]
    command += ["--storage", str(storage)]
    command += ["--methods", "without_mm", "--seeds", *seeds, "--workers", str(workers)]
    command += ["--search.max-concurrent", "1", "--train.lr", "3e-3"]
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
    tyro.cli(main, description=__doc__)
