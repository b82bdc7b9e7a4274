"""What a GPU's arithmetic is used for: steps, encoding, epochs and evaluations, against its peak.

    PYTHONPATH=. python benchmarks/gpu.py --minutes 8 --out results/bench/gpu.jsonl
    PYTHONPATH=. python benchmarks/gpu.py --minutes 60 --minilm FOLDER --data FOLDER

For a machine that has torch, transformers, peft, pandas, pyarrow, scikit-learn and safetensors, and
no Ray. Most important first; each row is written as it ends, as a line of JSON, and nothing is
begun after the time is up. Fractions are of the best bfloat16 product of 8192 x 8192 in the same
run; operations are those of matrix products, by torch's counter. Weights and catalogues are random,
which no time depends on. With a MiniLM folder and a folder of real data, a study of those comes
last; results of trials that are there already are read (`--work`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
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

from perpeft_ray.config import Dtype, Method, StudyConfig, TrainSettings, TrialConfig
from perpeft_ray.encoder import hardware
from perpeft_ray.encoder.fast import clip, lora, patches
from perpeft_ray.train.collective import Alone
from perpeft_ray.train.epoch import StageData, train_epoch
from perpeft_ray.train.evaluation import evaluate, metrics_of
from perpeft_ray.train.job import Job, open_job
from perpeft_ray.train.state import TrainState
from perpeft_ray.train.trial import run_trial
from perpeft_ray.train.workspace import Workspace, prepare

USERS, ITEMS = 12_000, 20_000


class Table:
    """Rows as they come: printed, written as JSON, and all again at the end."""

    def __init__(self, file: Path | None, minutes: float) -> None:
        self._file = file
        self._until = time.monotonic() + 60 * minutes
        self.rows: list[dict[str, Any]] = []
        self.peak = 0.0
        """bfloat16 TFLOP/s."""

    @property
    def seconds_left(self) -> float:
        """Until nothing more is begun."""
        return self._until - time.monotonic()

    def add(self, case: str, seconds: float, tflop: float | None = None, **more: Any) -> None:
        """A row; `tflop` are the matrix products that the seconds were spent on."""
        row: dict[str, Any] = {"case": case, "seconds": seconds}
        if tflop:
            row |= {"tflop": tflop, "of_peak": tflop / seconds / self.peak if self.peak else None}
        row |= more
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        if self._file is not None:
            with self._file.open("a") as lines:
                lines.write(json.dumps(row) + "\n")

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
        """The table."""
        for row in self.rows:
            of_peak = row.get("of_peak")
            share = f"{100 * of_peak:5.1f} %" if of_peak else "       "
            rest = {k: v for k, v in row.items() if k not in ("case", "seconds", "of_peak")}
            print(f"{row['case']:64} {row['seconds']:9.4f} s {share} {rest}")


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
    if not torch.cuda.is_available() and not given.small:
        print("no GPU: nothing is measured")
        return
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table = Table(given.out, given.minutes)
    given.work.mkdir(parents=True, exist_ok=True)
    small, work = given.small, given.work
    of_clip = partial(clip_workspace, work, small=small)
    parts: dict[str, Callable[[], None]] = {
        "peak": lambda: peak(table, device, 256 if small else 8192),
        "steps": lambda: step_rows(table, device, of_clip()),
        "minilm": lambda: minilm_rows(table, device, work, given.minilm, small=small),
        "encode": lambda: encode_row(table, device, of_clip(), "ViT-B/32"),
        "epoch": lambda: epoch_rows(table, device, of_clip()),
        "evaluation": lambda: evaluation_rows(table, device, of_clip(), "ViT-B/32"),
        "without": lambda: without(table, device, of_clip()),
        "float32": lambda: step_row(
            table, device, of_clip(), "ViT-B/32, float32", 16, dtype="float32"
        ),
    }
    if given.minilm and given.data:
        parts["study"] = lambda: study(table, device, given.work, given.minilm, given.data)
    for name, part in parts.items():
        if not given.only or name in given.only:
            table.run(name, part)
    table.show()


def peak(table: Table, device: torch.device, size: int) -> None:
    """The best bfloat16 product of this run."""
    x, y = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    taken = min(seconds(lambda: x @ y, device, repeats=10) for _ in range(2))
    table.peak = 2 * size**3 / taken / 1e12
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    table.add(
        f"GEMM {size}, bfloat16", taken, 2 * size**3 / 1e12, card=name, torch=torch.__version__
    )


def step_rows(table: Table, device: torch.device, workspace: Workspace) -> None:
    """Training steps of ViT-B/32."""
    for users in (16, 64, 256):
        step = partial(step_row, table, device, workspace, "ViT-B/32", users)
        table.run(f"ViT-B/32 step, {users} users", step)


def minilm_rows(
    table: Table, device: torch.device, work: Path, folder: Path | None, *, small: bool
) -> None:
    """Steps of MiniLM, all layers and the last two from stored states."""
    workspace = text_workspace(work, folder, small=small)
    step_row(table, device, workspace, "MiniLM", 128)
    table.run("encode", lambda: encode_row(table, device, workspace, "MiniLM"))
    last = {"last_layers": 2}
    table.run(
        "last layers",
        lambda: step_row(table, device, workspace, "MiniLM, last 2 layers, stored", 128, **last),
    )


def without(table: Table, device: torch.device, workspace: Workspace) -> None:
    """Steps of ViT-B/32 without one of the fast paths at a time."""
    sizes = hardware._CUDA
    changes: dict[str, Callable[[], Any]] = {
        "without graphs": lambda: changed(
            hardware, "_CUDA", dataclasses.replace(sizes, graph_items=0)
        ),
        "without lora.py": lambda: changed(lora, "compute_in_bfloat16", lambda model: None),
        "without clip.py": lambda: changed(clip, "runs", lambda model: False),
        "without patches.py": lambda: changed(
            patches, "embed_patches_by_product", lambda model: None
        ),
        "without padding": lambda: changed(
            hardware, "_CUDA", dataclasses.replace(sizes, item_step=1, length_step=1)
        ),
    }
    for name, change in changes.items():
        for users in (16, 64):

            def measure(name: str = name, users: int = users, change: Any = change) -> None:
                with change():
                    step_row(table, device, workspace, f"ViT-B/32, {name}", users)

            table.run(f"{name}, {users} users", measure, 10)


@contextmanager
def changed(module: Any, name: str, value: Any) -> Iterator[None]:
    """A module's name bound to something else, also where it was imported from there."""
    import sys

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


def trial(
    method: Method = "perpeft",
    *,
    batch_size: int = 16,
    dtype: Dtype = "bfloat16",
    last_layers: int | None = None,
    **more: Any,
) -> TrialConfig:
    """A trial with the paper's constants."""
    settings = TrainSettings(dtype=dtype, batch_size=batch_size)
    config = StudyConfig(train=settings).trial(
        method,
        variant="lora",
        rank=4,
        groups=8,
        conditioning_weight=1.0,
        seed=0,
        learning_rate=1e-4,
        mode="sequential",
    )
    return dataclasses.replace(config, last_layers=last_layers, **more)


def opened(
    device: torch.device, workspace: Workspace, groups: int = 1, **settings: Any
) -> tuple[Job, TrainState]:
    """A trial, untrained."""
    job = open_job(trial(**settings), workspace, Alone(), device)
    return job, job.fresh_state(range(groups))


def step_row(
    table: Table,
    device: torch.device,
    workspace: Workspace,
    name: str,
    users: int,
    **settings: Any,
) -> None:
    """A training step of so many users, from their sampling to the optimiser."""
    job, state = opened(device, workspace, batch_size=users, **settings)
    chosen = job.sampler.trainable_users[:users]
    data = StageData(1, job.sampler, {0: chosen}, {0: None}, 0.0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    step = partial(train_epoch, state, data, 1, job.config, Alone(), job.units)
    tflop = counted(step)
    first = time.perf_counter() - started
    taken = seconds(step, device, warm_up=4)
    busy = busy_seconds(step, device)
    table.add(
        f"{name}, LoRA step, {users} users",
        taken,
        tflop,
        first_s=round(first, 2),
        unit_items=job.units.items,
        busy_s=busy,
        peak_gb=peak_gb(device),
    )


def encode_row(table: Table, device: torch.device, workspace: Workspace, name: str) -> None:
    """All items under one module, as in an evaluation."""
    job, state = opened(device, workspace)
    model = job.model.eval()
    few = min(256, ITEMS)
    with torch.no_grad():
        some = np.arange(1, few + 1)
        embed = lambda: model.embed(some, state.modules[0])  # noqa: E731
        tflop = counted(embed) * ITEMS / few
    taken = seconds(lambda: model.embed_all(state.modules[0]), device, repeats=3)
    table.add(f"{name}, encode {ITEMS} items", taken, tflop, peak_gb=peak_gb(device))


def evaluation_rows(table: Table, device: torch.device, workspace: Workspace, name: str) -> None:
    """Ranks of all users, in one group and in eight."""
    for groups in (1, 8):
        job, state = opened(device, workspace, groups)
        of_users = (np.arange(job.split.num_users) % groups).astype(np.int32)
        length = job.config.sequence_length
        run = partial(
            evaluate, state.model, state.modules, of_users, job.split, "valid", length, Alone()
        )
        taken = seconds(run, device, repeats=1)
        table.add(f"{name}, evaluation of {USERS} users, {groups} groups", taken)


def epoch_rows(table: Table, device: torch.device, workspace: Workspace) -> None:
    """Epochs of all users, 16 at a time; graphs of new shapes are captured on the way."""
    job, state = opened(device, workspace, batch_size=16)
    users = job.sampler.trainable_users
    steps = -(-len(users) // 16)
    for name, some in (("first", 64), ("later", 64), ("whole", steps)):
        data = StageData(1, job.sampler, {0: users[: 16 * some]}, {0: None}, 0.0)
        started = time.perf_counter()
        train_epoch(state, data, 1, job.config, Alone(), job.units)
        taken = time.perf_counter() - started
        done = min(some, steps)
        of = f"{steps} steps" if name == "whole" else f"from the {name} {done} steps"
        table.add(f"paper-size epoch, batch 16, {of}", taken / done * steps)
        if table.seconds_left < taken / done * steps + 5:
            return


def study(table: Table, device: torch.device, work: Path, minilm: Path, data: Path) -> None:
    """Trials of real data to test, two seeds each; those of an earlier run are read."""
    workspace = prepare(f"parquet:{data}", f"text:{minilm}", work / "study")
    cells: list[tuple[str, Method, dict[str, Any]]] = [
        ("global", "global", {}),
        ("perpeft", "perpeft", {}),
        ("random grouping", "random_grouping", {}),
        ("lambda 0", "without_group_negatives", {}),
        ("frozen", "frozen_mm", {}),
        ("ids", "without_mm", {}),
    ]
    rest: dict[str, Any] = {"learning_rate": 3e-3, "stage1_epochs": 12, "stage3_epochs": 18}
    for seed in (0, 1):
        for name, method, more in cells:
            config = dataclasses.replace(
                trial(method, batch_size=128), dataset=f"parquet:{data}", seed=seed, **rest, **more
            )

            def one(config: TrialConfig = config, name: str = f"{name}, seed {seed}") -> None:
                started = time.perf_counter()
                outcome = run_trial(
                    config,
                    workspace,
                    lambda record: None,
                    test=True,
                    checkpoints=work / "checkpoints" / config.config_hash,
                    device=device,
                )
                taken = time.perf_counter() - started
                test = metrics_of(outcome.users.test_rank)
                table.add(
                    f"study: {name}",
                    taken,
                    ndcg_at_20=test.ndcg_at_20,
                    valid=outcome.valid.ndcg_at_20,
                )

            table.run(name, one, 60)


def seconds(
    work: Callable[[], Any], device: torch.device, repeats: int = 7, warm_up: int = 1
) -> float:
    """Median wall time of a call and of what it leaves to the device."""
    times = []
    for number in range(warm_up + repeats):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        if number >= warm_up:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def busy_seconds(work: Callable[[], Any], device: torch.device) -> float | None:
    """Seconds that the GPU computes in a call, by its profiler."""
    if device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        work()
        wait(device)
    return float(sum(event.device_time_total for event in profiled.key_averages()) / 1e6)


def counted(work: Callable[[], Any]) -> float:
    """TFLOP of the matrix products in a call."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops() / 1e12)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_gb(device: torch.device) -> float | None:
    """The most memory of the card that was in use."""
    return torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None


def clip_workspace(work: Path, *, small: bool) -> Workspace:
    """A random CLIP ViT-B/32 and a catalogue of random images and titles of 8 to 24 tokens."""
    import transformers as tf

    folder = work / f"clip-{ITEMS}"
    if not (folder / "encoder" / "config.json").exists():
        torch.manual_seed(0)
        config = tf.CLIPConfig()
        if small:
            few = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
            few |= {"intermediate_size": 64}
            config = tf.CLIPConfig(
                text_config=few, vision_config={**few, "image_size": 64}, projection_dim=16
            )
        tf.CLIPModel(config).save_pretrained(folder / "encoder")
        vision: Any = config.vision_config
        side = vision.image_size
        (folder / "encoder" / "preprocessor_config.json").write_text(
            json.dumps(
                {
                    "image_processor_type": "CLIPImageProcessor",
                    "size": {"shortest_edge": side},
                    "crop_size": {"height": side, "width": side},
                    "do_normalize": True,
                    "do_rescale": True,
                    "image_mean": [0.48, 0.46, 0.41],
                    "image_std": [0.27, 0.26, 0.28],
                }
            )
        )
    side = json.loads((folder / "encoder" / "config.json").read_text())["vision_config"][
        "image_size"
    ]
    return random_workspace(folder, str(folder / "encoder"), side, 49_407, 77, (8, 24))


def text_workspace(work: Path, minilm: Path | None, *, small: bool) -> Workspace:
    """MiniLM, or a random model of its shape, and titles as long as those of Amazon Scientific."""
    import transformers as tf

    folder = work / f"minilm-{ITEMS}"
    encoder = minilm or folder / "encoder"
    if not (encoder / "config.json").exists():
        shape: dict[str, Any] = {
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
        }
        if small:
            shape["num_hidden_layers"] = 3
        tf.BertModel(tf.BertConfig(**shape, intermediate_size=1536)).save_pretrained(encoder)
    return random_workspace(folder, f"text:{encoder}", 0, 102, 128, (12, 44))


def random_workspace(
    folder: Path, encoder: str, side: int, end: int, most: int, lengths: tuple[int, int]
) -> Workspace:
    """Random users, titles and images of `side` pixels (0: none), written where missing."""
    rng = np.random.default_rng(0)
    split, catalogue = folder / "split", folder / "catalogue"
    if not split.exists():
        counts = rng.integers(lengths[0], lengths[1] + 1, ITEMS + 1).astype(np.int32)
        ids = rng.integers(1000, 20_000, (ITEMS + 1, most)).astype(np.int32)
        ids[np.arange(most) >= counts[:, None]] = 0
        ids[np.arange(ITEMS + 1), counts - 1] = end
        catalogue.mkdir(parents=True)
        arrays: dict[str, Any] = {
            "token_ids": ids,
            "token_counts": counts,
            "pixel_row": np.arange(ITEMS + 1, dtype=np.int32) * bool(side),
            "has_title": np.arange(ITEMS + 1) > 0,
        }
        if side:
            shape = (ITEMS + 1, 3, side, side)
            arrays["pixels"] = np.frombuffer(rng.bytes(int(np.prod(shape))), np.uint8).reshape(
                shape
            )
        for name, array in arrays.items():
            np.save(catalogue / f"{name}.npy", array)
        history = rng.integers(8, 20, USERS)
        total = int(history.sum())
        written = folder / "split.part"
        written.mkdir()
        for name, array in {
            "train_offsets": np.concatenate([[0], np.cumsum(history)]),
            "train_items": (1 + ITEMS * rng.random(total) ** 2).astype(np.int32),
            "valid_item": rng.integers(1, ITEMS + 1, USERS).astype(np.int32),
            "test_item": rng.integers(1, ITEMS + 1, USERS).astype(np.int32),
        }.items():
            np.save(written / f"{name}.npy", array)
        for name, count in (("user_ids", USERS), ("item_ids", ITEMS)):
            ids = pd.DataFrame({"id": [f"{name[0]}{number}" for number in range(count)]})
            ids.to_parquet(written / f"{name}.parquet")
        written.rename(split)
    return Workspace(
        encoder=encoder,
        split=split,
        catalogue=catalogue,
        features=folder / "features",
        unfinished=folder / "stage1",
        stages=folder / "stage1",
        trials=folder / "trials",
        fingerprint=f"random {ITEMS}",
        num_users=USERS,
        num_items=ITEMS,
    )


if __name__ == "__main__":
    main()
