"""How histories of a table are gathered for `recommend --users`, without Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from perpeft_ray.data.tables import INTERACTION_COLUMNS, open_table
from perpeft_ray.models.batch import _gather


def gathered(table: pd.DataFrame, folder: Path) -> tuple[list[str], list[list[int]]]:
    table.to_parquet(folder / "users.parquet")
    source = open_table("`users`", folder / "users.parquet", INTERACTION_COLUMNS)
    out = folder / "histories.parquet"
    _gather(source, ["a", "b", "c"], out)
    found = pq.ParquetFile(out).read()
    return found["user_id"].to_pylist(), found["history"].to_pylist()


def test_users_keep_the_order_of_their_first_row(tmp_path):
    """More users than a row group has; ties of time are kept in the order of rows."""
    users = np.random.default_rng(0).integers(0, 5000, 20_000).astype(str)
    items = np.tile(["c", "a", "b"], 7000)[: len(users)]
    table = pd.DataFrame({"user_id": users, "item_id": items, "timestamp": 7})
    ids, histories = gathered(table, tmp_path)
    assert ids == list(dict.fromkeys(users))
    numbers = table.assign(item=table.item_id.map({"a": 1, "b": 2, "c": 3}))
    expected = numbers.groupby("user_id", sort=False)["item"].agg(list)
    assert histories == expected.tolist()


@pytest.mark.parametrize("name", ["a?b", "a*b", "a[1]b", "a\\b", "k=v", "50%", "a'b", "a b\n"])
def test_any_folder_can_be_written_to(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    table = pd.DataFrame({"user_id": ["u", "u"], "item_id": ["b", "a"], "timestamp": [2, 1]})
    assert gathered(table, folder) == (["u"], [[1, 2]])
