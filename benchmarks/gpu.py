"""What a GPU's arithmetic is used for: steps, encoding, epochs and evaluations, against its peak.

    PYTHONPATH=. python benchmarks/gpu.py --minutes 8 --out results/bench/gpu.jsonl
    PYTHONPATH=. python benchmarks/gpu.py --minutes 60 --minilm FOLDER --data FOLDER
    PYTHONPATH=. python benchmarks/gpu.py --small --only epoch    # tries the script, also on a CPU

For a machine that has torch, transformers, peft, pandas, pyarrow, scikit-learn and Pillow, and
no Ray. Most important first; each row is written as it ends, as a line of JSON, and nothing is
begun after the time is up. Fractions are of the best bfloat16 product of 8192 x 8192 in the same
run; operations are those of matrix products, by torch's counter. Weights and catalogues are random,
which no time depends on. With a MiniLM folder and a folder of real data, a study of those comes
last; rerun the same command to resume it.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _shops import clip_workspace, text_workspace
from _steps import Bench, matrix_flops, open_bench

from perpeft_ray.config import Method, StudyConfig, TrainSettings, TrialConfig
from perpeft_ray.encoder import hardware
from perpeft_ray.encoder.fast import clip, lora, patches, sdpa
from perpeft_ray.train.collective import Alone
from perpeft_ray.train.epoch import StageData, train_epoch
from perpeft_ray.train.trial import run_trial
from perpeft_ray.train.workspace import Workspace, prepare

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
USERS, ITEMS = 12_000, 20_000


class Table:
    """Rows as they come: printed, written as JSON, and all again at the end."""

    def __init__(self, file: Path | None, minutes: float) -> None:
        self._file = file
        self._until = time.monotonic() + 60 * minutes
        self._rows: list[dict[str, Any]] = []
        self.peak = 0.0
        """bfloat16 TFLOP/s."""

    @property
    def seconds_left(self) -> float:
        """Until nothing more is begun."""
        return self._until - time.monotonic()

    def add(self, case: str, seconds: float, tflop: float = 0.0, **more: Any) -> None:
        """A row; `tflop` are the matrix products that the seconds were spent on, 0: not known."""
        row: dict[str, Any] = {"case": case, "seconds": seconds}
        if tflop:
            row |= {"tflop": tflop, "of_peak": tflop / seconds / self.peak if self.peak else None}
        row |= more
        self._rows.append(row)
        line = json.dumps(row)
        print(line, flush=True)
        if self._file is not None:
            with self._file.open("a") as lines:
                lines.write(line + "\n")

    def run(self, name: str, work: Callable[[], None], least_seconds: float = 5) -> None:
        """Do a part if there is time; one that fails is a row, and the others go on."""
        if self.seconds_left < least_seconds:
            print(f"no time for: {name}", flush=True)
            return
        started = time.perf_counter()
        try:
            work()
        except Exception as error:  # noqa: BLE001 - it becomes a row
            traceback.print_exc()
            self.add(f"{name}: FAILED", time.perf_counter() - started, error=str(error)[:300])
        torch.cuda.empty_cache()

    def show(self) -> None:
        """Print the table."""
        print(
            pd.DataFrame(self._rows).to_string(index=False, na_rep="", float_format="{:.4g}".format)
        )


def main() -> None:
    """Measure what there is time for."""
    global USERS, ITEMS
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--out", type=Path, help="file for rows, as lines of JSON")
    parser.add_argument("--work", type=Path, default=Path("/tmp/perpeft-gpu"))
    parser.add_argument("--minilm", type=Path, help="folder of MiniLM; else its shape, random")
    parser.add_argument("--data", type=Path, help="folder of real data, for the study")
    parser.add_argument("--only", nargs="*", help="parts to measure; default: all")
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script")
    given = parser.parse_args()
    USERS, ITEMS = (60, 80) if given.small else (USERS, given.items)
    if DEVICE == "cpu" and not given.small:
        print("no GPU: nothing is measured")
        return
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
    table = Table(given.out, given.minutes)
    of_clip = partial(clip_workspace, given.work, USERS, ITEMS, small=given.small)
    float32 = partial(step_row, table, users=16, dtype="float32")
    parts: dict[str, Callable[[], None]] = {
        "peak": lambda: peak(table, 256 if given.small else 8192),
        "steps": lambda: step_rows(table, of_clip()),
        "minilm": lambda: minilm_rows(
            table, text_workspace(given.work, given.minilm, USERS, ITEMS, small=given.small)
        ),
        "encode": lambda: encode_row(table, of_clip(), "ViT-B/32"),
        "epoch": lambda: epoch_rows(table, of_clip()),
        "evaluation": lambda: evaluation_rows(table, of_clip(), "ViT-B/32"),
        "without": lambda: without(table, of_clip()),
        "float32": lambda: float32(of_clip(), "ViT-B/32, float32"),
    }
    if given.minilm and given.data:
        parts["study"] = lambda: study(table, given.work / "study", given.minilm, given.data)
    for name, part in parts.items():
        if not given.only or name in given.only:
            table.run(name, part)
    table.show()


def peak(table: Table, size: int) -> None:
    """The best bfloat16 product of this run."""
    x, y = (torch.randn(size, size, device=DEVICE).bfloat16() for _ in range(2))
    taken = min(seconds(lambda: x @ y, repeats=10) for _ in range(2))
    table.peak = 2 * size**3 / taken / 1e12
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    table.add(
        f"GEMM {size}, bfloat16", taken, 2 * size**3 / 1e12, card=name, torch=torch.__version__
    )


def step_rows(table: Table, workspace: Workspace) -> None:
    """Training steps of ViT-B/32."""
    for users in (16, 64, 256):
        step = partial(step_row, table, workspace, "ViT-B/32", users)
        table.run(f"ViT-B/32 step, {users} users", step)


def minilm_rows(table: Table, workspace: Workspace) -> None:
    """Steps of MiniLM, all layers and the last two from stored states."""
    step_row(table, workspace, "MiniLM", 128)
    table.run("encode", lambda: encode_row(table, workspace, "MiniLM"))
    name = "MiniLM, last 2 layers, stored"
    table.run("last layers", lambda: step_row(table, workspace, name, 128, last_layers=2))


def without(table: Table, workspace: Workspace) -> None:
    """Steps of ViT-B/32 without one of the fast paths at a time."""
    sizes = hardware._CUDA
    changes: dict[str, tuple[Any, str, Any]] = {
        "without graphs": (hardware, "_CUDA", dataclasses.replace(sizes, graph_items=0)),
        "without lora.py": (lora, "compute_in_bfloat16", lambda model: None),
        "without sdpa.py": (sdpa, "_is_short", lambda q, k, mask: False),
        "without clip.py": (clip, "runs", lambda model: False),
        "without patches.py": (patches, "embed_patches_by_product", lambda model: None),
        "without padding": (
            *(hardware, "_CUDA"),
            dataclasses.replace(sizes, item_step=1, length_step=1),
        ),
    }
    for name, change in changes.items():
        for users in (16, 64):

            def measure(name: str = name, users: int = users, change: Any = change) -> None:
                with changed(*change):
                    step_row(table, workspace, f"ViT-B/32, {name}", users)

            table.run(f"{name}, {users} users", measure, 10)


@contextmanager
def changed(module: Any, name: str, value: Any) -> Iterator[None]:
    """A module's name bound to something else, also where it was imported from there."""
    real = getattr(module, name)
    homes = [
        m
        for m in list(sys.modules.values())
        if getattr(m, "__name__", "").startswith("perpeft_ray") and getattr(m, name, None) is real
    ]
    for home in homes:
        setattr(home, name, value)
    try:
        yield
    finally:
        for home in homes:
            setattr(home, name, real)


def step_row(table: Table, workspace: Workspace, name: str, users: int, **settings: Any) -> None:
    """A training step of so many users, from their sampling to the optimiser."""
    bench = opened(workspace, batch_size=users, **settings)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    step = bench.step(1, users)
    flops = matrix_flops(step)
    first = time.perf_counter() - started
    table.add(
        f"{name}, LoRA step, {users} users",
        seconds(step, warm_up=4),
        flops / 1e12,
        first_s=round(first, 2),
        unit_items=bench.job.units.items,
        busy_s=busy_seconds(step),
        peak_gb=peak_gb(),
    )


def encode_row(table: Table, workspace: Workspace, name: str) -> None:
    """All items under one module, as in an evaluation."""
    bench = opened(workspace)
    model, module = bench.job.model.eval(), bench.state.modules[0]
    few = min(256, ITEMS)
    with torch.no_grad():
        some = np.arange(1, few + 1)
        tflop = matrix_flops(lambda: model.embed(some, module)) / 1e12 * ITEMS / few
    taken = seconds(lambda: model.embed_all(module), repeats=3)
    table.add(f"{name}, encode {ITEMS} items", taken, tflop, peak_gb=peak_gb())


def evaluation_rows(table: Table, workspace: Workspace, name: str) -> None:
    """Ranks of all users, in one group and in eight."""
    for groups in (1, 8):
        taken = seconds(opened(workspace, groups=groups).evaluation(), repeats=1)
        table.add(f"{name}, evaluation of {USERS} users, {groups} groups", taken)


def epoch_rows(table: Table, workspace: Workspace) -> None:
    """Epochs of all users, 16 at a time; graphs of new shapes are captured on the way."""
    bench = opened(workspace)
    job, users = bench.job, bench.job.sampler.trainable_users
    steps = -(-len(users) // 16)
    for name, some in (("first", 64), ("later", 64), ("whole", steps)):
        data = StageData(1, job.sampler, {0: users[: 16 * some]}, {0: None}, 0.0)
        started = time.perf_counter()
        train_epoch(bench.state, data, 1, job.config, Alone(), job.units)
        taken = time.perf_counter() - started
        done = min(some, steps)
        of = f"{steps} steps" if name == "whole" else f"from the {name} {done} steps"
        table.add(f"paper-size epoch, batch 16, {of}", taken / done * steps)
        if table.seconds_left < taken / done * steps + 5:
            return


def study(table: Table, work: Path, minilm: Path, data: Path) -> None:
    """Six methods of real data to test, two seeds each; a trial resumes from its checkpoint."""
    methods: tuple[Method, ...] = (
        *("global", "perpeft", "random_grouping", "without_group_negatives"),
        *("frozen_mm", "without_mm"),
    )
    preset = StudyConfig(
        dataset=f"parquet:{data}",
        encoder=f"text:{minilm}",
        train=TrainSettings(dtype="bfloat16", batch_size=128, epochs=12, personal_epochs=18),
    )
    workspace = prepare(preset.dataset, preset.encoder, work)
    for seed, method in itertools.product((0, 1), methods):
        config = preset.trial(
            method,
            variant="lora",
            rank=4,
            groups=8,
            conditioning_weight=1.0,
            seed=seed,
            learning_rate=3e-3,
        )

        def one(config: TrialConfig = config) -> None:
            started = time.perf_counter()
            outcome = run_trial(
                config,
                workspace,
                lambda record: None,
                test=True,
                checkpoints=work / "checkpoints" / config.config_hash,
                device=torch.device(DEVICE),
            )
            assert outcome.test is not None
            table.add(
                f"{config.method}, seed {config.seed}",
                time.perf_counter() - started,
                ndcg_at_20=outcome.test.ndcg_at_20,
                valid=outcome.valid.ndcg_at_20,
            )

        table.run(f"{method}, seed {seed}", one, 60)


def opened(workspace: Workspace, **settings: Any) -> Bench:
    """A trial in bfloat16, untrained; one group and batches of 16 users if not said."""
    return open_bench(
        workspace, **{"groups": 1, "batch_size": 16, "dtype": "bfloat16", **settings}, device=DEVICE
    )


def seconds(work: Callable[[], Any], repeats: int = 7, warm_up: int = 1) -> float:
    """Median wall time of a call and of what it leaves to the device."""
    times = []
    for number in range(warm_up + repeats):
        wait()
        started = time.perf_counter()
        work()
        wait()
        if number >= warm_up:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def busy_seconds(work: Callable[[], Any]) -> float | None:
    """Seconds that the GPU computes in a call, by its profiler."""
    if DEVICE == "cpu":
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        work()
        wait()
    return float(sum(event.device_time_total for event in profiled.key_averages()) / 1e6)


def wait() -> None:
    """Until the device has done what it was given."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peak_gb() -> float | None:
    """The most memory of the card that was in use."""
    return torch.cuda.max_memory_allocated() / 1e9 if DEVICE == "cuda" else None


if __name__ == "__main__":
    main()
