"""How fast an exported model answers: one user at a time, many at once, and all by Ray Data.

    python benchmarks/recommend.py                                   # 2,000 to 200,000 items
    python benchmarks/recommend.py --items 2000 --ray-users 0        # a look, without Ray

The model is random, of the paper's size (8 groups, D = 32, T = 10): speed does not depend on what
was learned. Loading is timed with the files in the system's cache. One thread.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
import tyro
from _bench import Row, record
from numpy.typing import NDArray
from safetensors.torch import save_file

import perpeft_ray
from perpeft_ray.config import StudyConfig
from perpeft_ray.models.batch import recommend_all
from perpeft_ray.models.layout import (
    CENTROIDS,
    EMBEDDINGS,
    FORMAT,
    GROUPING,
    ITEMS,
    SASREC,
    ExportConfig,
    group_folder,
    write_config,
)
from perpeft_ray.recommender.sasrec import SASRec

GROUPS = 8
CALLS = 300

T = TypeVar("T")


@dataclass(frozen=True)
class Sizes:
    """Sizes to measure."""

    items: tuple[int, ...] = (2_000, 20_000, 200_000)
    """Items of each catalogue."""
    users: int = 4_096
    """Users scored together."""
    ray_users: int = 50_000
    """Users scored by Ray Data, at the first two sizes; 0: none."""


def main() -> None:
    """Measure and record."""
    sizes = tyro.cli(Sizes, description=__doc__)
    torch.set_num_threads(1)
    rows = []
    for place, items in enumerate(sizes.items):
        with tempfile.TemporaryDirectory() as folder:
            model_folder = Path(folder) / "model"
            write_random_model(model_folder, items)
            rows += measured(model_folder, items, sizes.users)
            if sizes.ray_users and place < 2:
                by_ray = through_ray(model_folder, sizes.ray_users, items)
                case = f"{items:,} items, all by Ray Data"
                rows.append(Row("recommend", case, "users/s", by_ray, "users/s"))
    record(rows)


def measured(folder: Path, items: int, users: int) -> list[Row]:
    """Loading the model, one user at a time and so many at once, in this process."""
    model, load = timed(lambda: perpeft_ray.load(folder))
    histories = random_histories(max(users, CALLS), items)
    ids = [[model.item_ids[item - 1] for item in history] for history in histories[:CALLS]]
    model.recommend(ids[0])
    calls = [timed(partial(model.recommend, history))[1] for history in ids]
    p50, p95 = 1e3 * np.percentile(calls, [50, 95])
    model.top_items(histories[:64], 10)
    _, many = timed(lambda: model.top_items(histories[:users], 10))
    case = f"{items:,} items"
    return [
        Row("recommend", case, "loading", load, "s"),
        Row("recommend", f"{case}, one user", "p50", p50, "ms"),
        Row("recommend", f"{case}, one user", "p95", p95, "ms"),
        Row("recommend", f"{case}, {users:,} users", "users/s", users / many, "users/s"),
    ]


def write_random_model(folder: Path, items: int) -> None:
    """An exported model of random weights."""
    trial = StudyConfig().trial(
        "perpeft",
        seed=0,
        variant="lora",
        rank=4,
        groups=GROUPS,
        conditioning_weight=1.0,
        learning_rate=1e-3,
    )
    folder.mkdir()
    ids = [f"item{n}" for n in range(items)]
    (folder / ITEMS).write_text(json.dumps({"item_ids": ids, "titles": [None] * items}))
    rng = torch.Generator().manual_seed(0)
    D = trial.hidden_units
    parts = [group_folder(folder, group) for group in range(GROUPS)] + [folder / GROUPING]
    for part in parts:
        part.mkdir(parents=True)
        save_file({"embeddings": torch.randn(items + 1, D, generator=rng)}, part / EMBEDDINGS)
    save_file({"centroids": torch.randn(GROUPS, D, generator=rng)}, folder / GROUPING / CENTROIDS)
    for part in (folder, folder / GROUPING):
        sasrec = SASRec(items, D, trial.sequence_length, trial.blocks, trial.heads, trial.dropout)
        save_file(sasrec.state_dict(), part / SASREC)
    write_config(
        ExportConfig(
            format=FORMAT,
            version=perpeft_ray.__version__,
            study="random",
            trial_id="random",
            trial=replace(trial, dataset="random"),
            encoder="toyshop-clip",
            encoder_fingerprint="",
            data_fingerprint="",
            users=0,
            items=items,
            interactions=0,
            embeddings="float32",
        ),
        folder,
    )


def random_histories(users: int, items: int) -> list[NDArray[np.int64]]:
    """5 to 20 items each."""
    rng = np.random.default_rng(0)
    return [rng.integers(1, items + 1, size=rng.integers(5, 21)) for _ in range(users)]


def through_ray(model: Path, users: int, items: int) -> float:
    """Users a second of `recommend_all` with one worker: all of it but starting Ray."""
    from perpeft_ray.study.runtime import ray_runtime

    histories = random_histories(users, items)
    owners = np.repeat(np.arange(users), [len(history) for history in histories])
    table = pd.DataFrame(
        {
            "user_id": pd.Series(owners).map("user{}".format),
            "item_id": pd.Series(np.concatenate(histories) - 1).map("item{}".format),
            "timestamp": np.arange(len(owners)),
        }
    )
    file = model.parent / "interactions.parquet"
    table.to_parquet(file)
    with ray_runtime():
        _, took = timed(lambda: recommend_all(model, file, model.parent / "out"))
    return users / took


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """What the function returns, and its seconds."""
    started = time.perf_counter()
    out = function()
    return out, time.perf_counter() - started


if __name__ == "__main__":
    main()
