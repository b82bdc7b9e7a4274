"""All users at once by Ray Data give what each of them gets alone."""

from __future__ import annotations

import pandas as pd
import pytest

import perpeft_ray
from perpeft_ray.cli.main import perpeft
from perpeft_ray.errors import InputError
from perpeft_ray.models.batch import SCHEMA, recommend_all

pytestmark = pytest.mark.usefixtures("one_ray")


IDS = ["a", "a\0", "a\0b", "x" * 300, "x" * 301, "A", "é", "e\u0301", " a", ""]
"""Each is another user."""


def test_every_user_gets_what_they_get_alone(exported, shop, tmp_path, capsys):
    table = pd.read_parquet(shop / "interactions.parquet")
    table["user_id"] = table.user_id.replace({f"u{n}": user for n, user in enumerate(IDS)})
    strangers = pd.DataFrame(
        {"user_id": ["x", "y", "y"], "item_id": ["gone", "gone", "i4"], "timestamp": [0, 0, 1]}
    )
    # Backwards in the file, so that the order of time is what counts.
    table = pd.concat([table, strangers]).sort_values("timestamp", ascending=False, kind="stable")
    table.to_parquet(tmp_path / "all.parquet")
    users, out = str(tmp_path / "all.parquet"), str(tmp_path / "out")
    perpeft(["recommend", str(exported), "--users", users, "--out", out, "-k", "4"])
    said = capsys.readouterr().err
    assert f"41 of 42 users in {out}\n" in said
    assert f"skipped 2 of {len(table)} interactions" in said
    found = pd.read_parquet(tmp_path / "out")
    assert list(found.columns) == SCHEMA.names
    assert set(found.user_id) == set(table.user_id) - {"x"}
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


def test_users_of_several_tasks_and_workers_are_scored_once(exported, shop, tmp_path):
    one = pd.read_parquet(shop / "interactions.parquet")
    copies = [one.assign(user_id=one.user_id + f"-{n}") for n in range(120)]
    pd.concat(copies).to_parquet(tmp_path / "all.parquet")
    counts = recommend_all(exported, tmp_path / "all.parquet", tmp_path / "out", k=3, workers=2)
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user_id": [None, "b"]}, "column `user_id` must not be null, but row 0 is"),
        ({"item_id": ["gone", "gone"]}, "must have items of the model, .* for example 'i0'"),
        ({"user_id": [], "item_id": [], "timestamp": []}, "must have at least one row"),
    ],
)
def test_a_bad_table_is_refused_and_leaves_nothing(exported, tmp_path, changes, message):
    good = {"user_id": ["a", "b"], "item_id": ["i1", "i2"], "timestamp": [1, 2]}
    pd.DataFrame(good | changes).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match=message):
        recommend_all(exported, tmp_path / "t.parquet", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_k_below_one_is_refused(exported, shop, tmp_path):
    with pytest.raises(InputError, match="`k` must be a whole number of at least 1"):
        recommend_all(exported, shop / "interactions.parquet", tmp_path / "out", k=0)
