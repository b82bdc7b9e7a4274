"""Recommendations for all users of an interactions table: DuckDB gathers, Ray Data scores.

Histories are gathered out of core. Every Ray Data worker loads the model once and writes its own
results, so neither the table nor the result must fit in memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from perpeft_ray.config.rules import at_least
from perpeft_ray.data.folders import new_folder
from perpeft_ray.data.prepare.database import Database
from perpeft_ray.data.tables import INTERACTION_COLUMNS, ParquetTable, open_table
from perpeft_ray.errors import InputError
from perpeft_ray.models.layout import read_config, read_items
from perpeft_ray.models.loaded import LoadedModel
from perpeft_ray.store.files import whole_file

SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("group", pa.int32()),
        ("rank", pa.int32()),
        ("item_id", pa.string()),
        ("score", pa.float32()),
    ]
)
"""One row per recommendation; `rank` is 0-based, as in a study's results."""

_USERS_PER_TASK = 2048
"""Users per task of a Ray Data worker; DuckDB's smallest row group."""
_USERS_PER_BATCH = 1024
"""Users that a worker scores together."""
_MEMORY_GB = 1.0
"""Memory limit of DuckDB while it gathers histories."""


@dataclass(frozen=True)
class BatchCounts:
    """Numbers of users and rows that were read and scored."""

    users: int
    """Users of the table."""
    scored: int
    """Of these, with at least one item that the model knows."""
    interactions: int
    """Rows of the table."""
    skipped: int
    """Of these, with an item that the model does not know."""


def recommend_all(
    model: Path,
    interactions: Path,
    out: Path,
    *,
    k: int = 10,
    exclude_seen: bool = True,
    workers: int = 1,
) -> BatchCounts:
    """Write the k best items of every user to the new folder `out`, Parquet files of `SCHEMA`.

    `interactions`: a Parquet file, or a folder of its parts, with user_id, item_id and timestamp in
    the forms that training takes (`data/tables.py`). `exclude_seen` excludes items of the user's
    history. `workers`: of Ray Data, each with a copy of the model and one CPU. Skips unknown items,
    and users without any known one. Joins the Ray that `RAY_ADDRESS` names, else starts Ray. The
    folder appears whole or not at all. Raises InputError for a bad model or table, a table without
    any known item, and if `out` exists.
    """
    from perpeft_ray.study.runtime import ray_runtime

    out = out.absolute()
    for name, value in (("k", k), ("workers", workers)):
        at_least(name, value, 1)
    if out.exists():
        raise InputError(
            f"the folder to write to must not exist yet, but {out} does; remove it or choose "
            "another"
        )
    items, _ = read_items(model, read_config(model).items)
    table = open_table(f"`users` {interactions}", interactions, INTERACTION_COLUMNS)
    # Beside the result, since other machines of a cluster must see it.
    with new_folder(out) as temporary:
        work = temporary / ".work"
        work.mkdir()
        histories = work / "histories.parquet"
        rows, skipped = _gather(table, items, histories)
        if rows == skipped:
            raise InputError(
                f"`users` must have items of the model, but {interactions} has none; for example "
                f"{items[0]!r} is one"
            )
        with ray_runtime():
            paths = model.resolve(), histories.resolve(), temporary.resolve()
            scored = _score(*paths, k, exclude_seen, workers)
        users = int(pq.ParquetFile(histories).metadata.num_rows)
        shutil.rmtree(work)
    return BatchCounts(users, scored, rows, skipped)


def _gather(table: ParquetTable, items: list[str], out: Path) -> tuple[int, int]:
    """Write one row per user, in order of appearance, with the history ordered by time, then row.

    Columns user_id and history: indices 1..I of the known items. Returns the number of rows of the
    table, and of those with an unknown item.
    """
    known = pa.array(items, pa.string())

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in table.batches(nulls=False):
            item = pc.add(pc.index_in(batch["item_id"], value_set=known), 1)
            yield pa.record_batch(
                {"user_id": batch["user_id"], "item": item, "timestamp": batch["timestamp"]}
            )

    with Database(out.with_suffix(".duckdb"), _MEMORY_GB) as database:
        rows = database.load("interactions", batches())
        database.write_parquet(
            "SELECT user_id, list(item ORDER BY timestamp, row) FILTER (item IS NOT NULL) "
            "AS history FROM interactions GROUP BY user_id ORDER BY min(row)",
            out,
            row_group=_USERS_PER_TASK,
        )
        (skipped,) = database.row("SELECT count(*) FROM interactions WHERE item IS NULL")
    return rows, int(skipped)


def _score(
    model: Path, histories: Path, out: Path, k: int, exclude_seen: bool, workers: int
) -> int:
    """Write the recommendations for every row group of `histories`; returns the number of users."""
    import ray.data

    from perpeft_ray.study.runtime import quiet_data

    quiet_data()
    groups = int(pq.ParquetFile(histories).metadata.num_row_groups)
    # With `range`, a task would make the numbers, and would wait for a CPU if workers hold all.
    numbers = [{"id": group} for group in range(groups)]
    scored = (
        ray.data.from_items(numbers, override_num_blocks=groups)
        .map_batches(
            _Scorer,
            fn_constructor_args=(model, histories, out, k, exclude_seen),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
        )
        .take_all()
    )
    return sum(int(row["scored"]) for row in scored)


class _Scorer:
    """A Ray Data worker: loads the model once and scores."""

    def __init__(self, model: Path, histories: Path, out: Path, k: int, exclude_seen: bool) -> None:
        import torch

        torch.set_num_threads(1)
        self._model = LoadedModel(model)
        self._histories = histories
        self._out = out
        self._k, self._exclude_seen = k, exclude_seen

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
        """Column id, a row group's number -> column scored, its users with recommendations."""
        (group,) = batch["id"]
        with pq.ParquetFile(self._histories) as file:
            users = file.read_row_group(int(group))
        users = users.filter(pc.is_valid(users["history"]))
        if len(users):
            step = _USERS_PER_BATCH
            parts = [self._best(users[at : at + step]) for at in range(0, len(users), step)]
            with whole_file(self._out / f"part-{group:06d}.parquet") as temporary:
                pq.write_table(pa.concat_tables(parts), temporary)
        return {"scored": np.array([len(users)])}

    def _best(self, users: pa.Table) -> pa.Table:
        """Columns user_id, history (list of item indices) -> `SCHEMA`."""
        histories = [np.array(items, dtype=np.int64) for items in users["history"].to_pylist()]
        best = self._model.top_items(histories, self._k, exclude_seen=self._exclude_seen)
        found = best.items > 0  # [n, k]
        user, rank = np.nonzero(found)
        ids = np.array(self._model.item_ids, dtype=object)
        return pa.table(
            {
                "user_id": users["user_id"].take(pa.array(user)),
                "group": best.groups[user],
                "rank": rank.astype(np.int32),
                "item_id": pa.array(ids[best.items[found] - 1], pa.string()),
                "score": best.scores[found],
            },
            schema=SCHEMA,
        )
