"""All users at once by Ray Data give what each of them gets alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import perpeft_ray
from perpeft_ray.cli.main import perpeft
from perpeft_ray.errors import InputError
from perpeft_ray.models.batch import SCHEMA, BatchOptions, recommend_all

pytestmark = pytest.mark.usefixtures("one_ray")


def test_every_user_gets_what_they_get_alone(exported, shop, tmp_path):
    table = pd.read_parquet(shop / "interactions.parquet")
    strangers = pd.DataFrame(
        {"user_id": ["x", "y", "y"], "item_id": ["gone", "gone", "i4"], "timestamp": [0, 0, 1]}
    )
    # Backwards in the file, so that the order of time is what counts.
    table = pd.concat([table, strangers]).sort_values("timestamp", ascending=False, kind="stable")
    table.to_parquet(tmp_path / "all.parquet")
    counts = recommend_all(
        exported, tmp_path / "all.parquet", tmp_path / "out", BatchOptions(k=4)
    )
    users = table.user_id.nunique()
    assert (counts.users, counts.scored) == (users, users - 1)
    assert (counts.interactions, counts.skipped) == (len(table), 2)
    found = pd.read_parquet(tmp_path / "out")
    assert list(found.columns) == SCHEMA.names
    assert "x" not in set(found.user_id)
    model = perpeft_ray.load(exported)
    histories = table[table.item_id != "gone"].sort_values("timestamp", kind="stable")
    for user, history in histories.groupby("user_id"):
        mine = found[found.user_id == user].sort_values("rank")
        alone = model.recommend(history.item_id.tolist(), 4)
        assert mine.item_id.tolist() == [item.item_id for item in alone]
        assert mine.score.tolist() == pytest.approx([item.score for item in alone], abs=1e-5)
        assert set(mine.group) == {model.group_of(history.item_id.tolist())}
        assert mine["rank"].tolist() == [0, 1, 2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.parquet", "out"]


def test_users_are_scored_in_parts(exported, shop, tmp_path, monkeypatch):
    """More users than a worker takes at a time, two workers: each user once, as ever."""
    one = pd.read_parquet(shop / "interactions.parquet")
    copies = [one.assign(user_id=[f"{user}-{n}" for user in one.user_id]) for n in range(120)]
    pd.concat(copies).to_parquet(tmp_path / "all.parquet")
    options = BatchOptions(k=3, workers=2)
    counts = recommend_all(exported, tmp_path / "all.parquet", tmp_path / "out", options)
    assert (counts.users, counts.scored, counts.skipped) == (4800, 4800, 0)
    assert len(list((tmp_path / "out").iterdir())) > 1
    found = pd.read_parquet(tmp_path / "out")
    assert not found.duplicated(["user_id", "rank"]).any()
    assert len(found) == 3 * 4800
    model = perpeft_ray.load(exported)
    for user in ("u5", "u17"):
        history = one[one.user_id == user].sort_values("timestamp", kind="stable").item_id.tolist()
        best = [item.item_id for item in model.recommend(history, 3)]
        for n in (0, 60, 119):
            mine = found[found.user_id == f"{user}-{n}"].sort_values("rank")
            assert mine.item_id.tolist() == best


def recommended(exported: Path, table: Path, out: Path) -> pd.DataFrame:
    recommend_all(exported, table, out, BatchOptions(k=3))
    return pd.read_parquet(out).sort_values(["user_id", "rank"], ignore_index=True)


def test_every_form_of_ids_and_times_gives_the_same(exported, tmp_path):
    """Also below folders whose names look like patterns, partitions and addresses."""
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(6), 4),
            "item_id": [f"i{n}" for n in rng.integers(0, 30, 24)],
            "timestamp": rng.permutation(24) + 5,
        }
    )
    odd = tmp_path / "a=b" / "data[1] #50%"
    odd.mkdir(parents=True)
    rows.astype({"user_id": str}).to_parquet(odd / "plain.parquet")
    expected = recommended(exported, odd / "plain.parquet", odd / "plain=out")
    assert list(expected.columns) == SCHEMA.names
    forms = {
        "numbers": rows,
        "text times": rows.astype({"user_id": str, "timestamp": str}),
        "clock": rows.assign(timestamp=pd.to_datetime(rows.timestamp, unit="us")),
        "categories": rows.astype({"user_id": str, "item_id": "category"}),
    }
    for name, table in forms.items():
        table.to_parquet(odd / f"{name}.parquet")
        found = recommended(exported, odd / f"{name}.parquet", tmp_path / f"out {name}")
        pd.testing.assert_frame_equal(found, expected)
    (tmp_path / "parts").mkdir()
    rows[:10].to_parquet(tmp_path / "parts" / "part-0.parquet")
    rows[10:].to_parquet(tmp_path / "parts" / "part-1.parquet")
    found = recommended(exported, tmp_path / "parts", tmp_path / "out of parts")
    pd.testing.assert_frame_equal(found, expected)


def test_user_ids_are_exact(exported, tmp_path):
    ids = ["a", "a\0", "a\0b", "x" * 300, "x" * 301, "A", "é", "e\u0301", " a", ""]
    table = pd.DataFrame({"user_id": ids, "item_id": "i3", "timestamp": 0})
    table.to_parquet(tmp_path / "ids.parquet")
    found = recommended(exported, tmp_path / "ids.parquet", tmp_path / "out")
    assert sorted(found.user_id.unique()) == sorted(ids)


def test_bad_tables_are_told_and_leave_nothing(exported, tmp_path):
    good = pd.DataFrame({"user_id": ["a", "b"], "item_id": ["i1", "i2"], "timestamp": [1, 2]})
    bad = {
        "must have one column `timestamp`": good.drop(columns="timestamp"),
        "column `timestamp` must not be null, but row 1 is": good.assign(timestamp=[1, None]),
        "column `user_id` must not be null, but row 0 is": good.assign(user_id=[None, "b"]),
        "column `timestamp` must have whole numbers, .* '1.5'": good.assign(timestamp=[1, 1.5]),
        "column `timestamp` must have .*'today'": good.assign(timestamp=["2024-01-01", "today"]),
        "must have items of the model, .* for example 'i0'": good.assign(item_id="gone"),
        "must have at least one row": good[:0],
    }
    for message, table in bad.items():
        table.to_parquet(tmp_path / "t.parquet")
        with pytest.raises(InputError, match=message):
            recommend_all(exported, tmp_path / "t.parquet", tmp_path / "out")
    (tmp_path / "text.parquet").write_text("not a table")
    with pytest.raises(InputError, match="must be a readable table"):
        recommend_all(exported, tmp_path / "text.parquet", tmp_path / "out")
    with pytest.raises(InputError, match="is missing"):
        recommend_all(exported, tmp_path / "none.parquet", tmp_path / "out")
    with pytest.raises(InputError, match="`k` must be at least 1"):
        recommend_all(exported, tmp_path / "t.parquet", tmp_path / "out", BatchOptions(k=0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.parquet", "text.parquet"]


def test_the_command_says_how_many_users_it_wrote(exported, shop, tmp_path, capsys):
    users = str(shop / "interactions.parquet")
    perpeft(
        ["recommend", str(exported), "--users", users, "--out", str(tmp_path / "out"), "-k", "2"]
    )
    assert len(pd.read_parquet(tmp_path / "out")) == 2 * 40
    assert "40 of 40 users" in capsys.readouterr().err
