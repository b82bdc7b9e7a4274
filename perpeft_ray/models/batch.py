"""Recommendations for all users of an interactions table: DuckDB gathers, Ray Data scores.

Histories are gathered out of memory, and every Ray Data worker loads the model once, so neither the
table nor the result need fit in memory.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from perpeft_ray.data.folders import new_folder
from perpeft_ray.errors import InputError
from perpeft_ray.models.layout import read_config
from perpeft_ray.models.loaded import LoadedModel

SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("group", pa.int32()),
        ("rank", pa.int32()),
        ("item_id", pa.string()),
        ("score", pa.float32()),
    ]
)
"""One row a recommendation; `rank` is 0-based, as in a study's results."""

_COLUMNS = ("user_id", "item_id", "timestamp")


@dataclass(frozen=True)
class BatchOptions:
    """How all users are scored."""

    k: int = 10
    """Items a user."""
    exclude_seen: bool = True
    """Leave out what the user's history has."""
    batch_size: int = 1024
    """Users scored at a time."""
    workers: int = 1
    """Ray Data workers, each with a copy of the model and one CPU."""
    memory_gb: float = 1.0
    """What DuckDB may hold in memory while it gathers histories."""


@dataclass(frozen=True)
class BatchCounts:
    """What was scored."""

    users: int
    """Users of the table."""
    scored: int
    """Of these, with at least one item that the model knows."""


def recommend_all(
    model: Path, interactions: Path, out: Path, options: BatchOptions | None = None
) -> BatchCounts:
    """Write the best items of every user to the new folder `out`, Parquet files of `SCHEMA`.

    `interactions`: a Parquet file with user_id, item_id and timestamp, as a data folder has it.
    Items that the model does not know are left out of histories, and users without any other are
    left out of the result. Ray is joined where `RAY_ADDRESS` says so, else started. The folder
    appears whole or not at all. Raises InputError for a bad model or table, and where `out` is
    there.
    """
    from perpeft_ray.study.host.runtime import ray_runtime

    options = options or BatchOptions()
    for name in ("k", "batch_size", "workers"):
        if getattr(options, name) < 1:
            raise InputError(f"`{name}` must be at least 1, but is {getattr(options, name)}")
    if out.exists():
        raise InputError(f"the folder to write to must not be there yet, but {out} is")
    read_config(model)
    _check_table(interactions)
    # Beside the result, since other machines of a cluster must see it.
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".histories-", dir=out.parent) as gathered:
        histories = Path(gathered) / "histories.parquet"
        users = _gather(interactions, histories, options.memory_gb)
        with new_folder(out) as temporary, ray_runtime():
            _score(model.resolve(), histories, temporary.resolve(), options)
            scored = _users_in(temporary)
    return BatchCounts(users, scored)


def _score(model: Path, histories: Path, out: Path, options: BatchOptions) -> None:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # the other writes to Ray's own log folder
            handler.setLevel(logging.ERROR)
    ray.data.read_parquet(str(histories)).map_batches(
        _Scorer,
        fn_constructor_args=(str(model), options.k, options.exclude_seen),
        batch_size=options.batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=options.workers),
        num_cpus=1,
    ).write_parquet(str(out))


class _Scorer:
    """What a Ray Data worker runs: the model, loaded once."""

    def __init__(self, model: str, k: int, exclude_seen: bool) -> None:
        import torch

        torch.set_num_threads(1)
        self._model = LoadedModel(Path(model))
        self._k = k
        self._exclude_seen = exclude_seen

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Columns user_id, history (list of item ids) -> `SCHEMA`."""
        model = self._model
        histories = [model.known_indices(ids) for ids in batch["history"].to_pylist()]
        known = np.array([len(history) > 0 for history in histories], dtype=bool)
        rows = np.flatnonzero(known)
        best = model.top_items(
            [histories[row] for row in rows], self._k, exclude_seen=self._exclude_seen
        )
        found = best.items > 0  # [n, k]
        user, rank = np.nonzero(found)
        ids = np.array(model.item_ids, dtype=object)
        return pa.table(
            {
                "user_id": batch["user_id"].take(pa.array(rows[user])),
                "group": best.groups[user],
                "rank": rank.astype(np.int32),
                "item_id": pa.array(ids[best.items[found] - 1], pa.string()),
                "score": best.scores[found],
            },
            schema=SCHEMA,
        )


def _gather(interactions: Path, out: Path, memory_gb: float) -> int:
    """Write one row a user, with the history in order of time, then of the file; how many users."""
    import duckdb

    with duckdb.connect(
        config={
            "memory_limit": f"{round(memory_gb * 1000)}MB",
            "temp_directory": str(out.with_suffix(".spill")),
        }
    ) as connection:
        connection.execute("SET enable_progress_bar = false")
        connection.execute(
            f"""COPY (
                SELECT CAST(user_id AS VARCHAR) AS user_id,
                       list(CAST(item_id AS VARCHAR) ORDER BY timestamp, file_row_number) AS history
                FROM read_parquet(?, file_row_number = true)
                GROUP BY 1
            ) TO '{str(out).replace("'", "''")}' (FORMAT parquet, ROW_GROUP_SIZE 20480)""",
            [str(interactions)],
        )
    return int(pq.read_metadata(out).num_rows)


def _check_table(interactions: Path) -> None:
    if not interactions.is_file():
        raise InputError(f"`users` must be a Parquet file, but {interactions} is no file")
    try:
        names = pq.read_schema(interactions).names
    except pa.ArrowInvalid as error:
        first = str(error).splitlines()[0]
        raise InputError(f"`users` must be a Parquet file, but {interactions}: {first}") from error
    missing = [name for name in _COLUMNS if name not in names]
    if missing:
        raise InputError(f"`users` must have the column {missing[0]}, but {interactions} has not")


def _users_in(folder: Path) -> int:
    """Users that have a recommendation."""
    files = list(folder.glob("*.parquet"))
    ranks = (pq.read_table(file, columns=["rank"])["rank"].to_numpy() for file in files)
    return int(sum(np.count_nonzero(rank == 0) for rank in ranks))
