"""All users at once by Ray Data give what each of them gets alone."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import perpeft_ray
from perpeft_ray.cli.main import perpeft
from perpeft_ray.errors import InputError
from perpeft_ray.models.batch import SCHEMA, BatchOptions, recommend_all

pytestmark = pytest.mark.usefixtures("one_ray")


def test_every_user_gets_what_they_get_alone(exported: Path, shop: Path, tmp_path: Path) -> None:
    table = pd.read_parquet(shop / "interactions.parquet")
    strangers = pd.DataFrame(
        {"user_id": ["x", "y", "y"], "item_id": ["gone", "gone", "i4"], "timestamp": [0, 0, 1]}
    )
    # Backwards in the file, so that the order of time is what counts.
    table = pd.concat([table, strangers]).sort_values("timestamp", ascending=False, kind="stable")
    table.to_parquet(tmp_path / "all.parquet")
    counts = recommend_all(
        exported, tmp_path / "all.parquet", tmp_path / "out", BatchOptions(k=4, batch_size=16)
    )
    users = table.user_id.nunique()
    assert (counts.users, counts.scored) == (users, users - 1)
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


def test_bad_tables_are_told_and_leave_nothing(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        recommend_all(exported, tmp_path / "none.parquet", tmp_path / "out")
    pd.DataFrame({"user_id": ["a"], "item_id": ["i1"]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match="must have the column timestamp"):
        recommend_all(exported, tmp_path / "t.parquet", tmp_path / "out")
    (tmp_path / "text.parquet").write_text("not a table")
    with pytest.raises(InputError, match="must be a Parquet file"):
        recommend_all(exported, tmp_path / "text.parquet", tmp_path / "out")
    with pytest.raises(InputError, match="`k` must be at least 1"):
        recommend_all(exported, tmp_path / "t.parquet", tmp_path / "out", BatchOptions(k=0))
    assert not (tmp_path / "out").exists()


def test_the_command_says_how_many_users_it_wrote(
    exported: Path, shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    users = str(shop / "interactions.parquet")
    perpeft(
        ["recommend", str(exported), "--users", users, "--out", str(tmp_path / "out"), "-k", "2"]
    )
    assert len(pd.read_parquet(tmp_path / "out")) == 2 * 40
    assert "40 of 40 users" in capsys.readouterr().out
