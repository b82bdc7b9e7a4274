"""A workspace on a node that does not see what the study's machine has prepared."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from perpeft_ray.config import DataSettings
from perpeft_ray.data.interactions import load_folder
from perpeft_ray.data.split import split_dataset
from perpeft_ray.errors import InputError
from perpeft_ray.train.workspace import (
    open_catalogue,
    open_split,
    prepare,
    prepare_dataset,
    prepare_here,
)
from tests.small_shop import write_small_shop


def _contents(*folders: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for f in folders for p in sorted(f.rglob("*")) if p.is_file()}


def test_what_is_not_seen_is_prepared_again(tmp_path):
    shop = write_small_shop(tmp_path / "shop")
    uri = f"parquet:{shop}"
    dataset, kept = load_folder(shop, uri), (tmp_path / "kept").as_uri()
    workspace = prepare_dataset(dataset, "toyshop-clip", tmp_path / "cache", kept=kept)
    assert workspace.trials == f"{kept}/trials"
    before = _contents(workspace.split, workspace.catalogue)
    shutil.rmtree(tmp_path / "cache")

    prepare_here(workspace, uri)
    assert _contents(workspace.split, workspace.catalogue) == before
    assert open_split(workspace).num_items == open_catalogue(workspace).num_items == 30

    shutil.move(shop, tmp_path / "away")
    prepare_here(workspace, uri)  # it is there: nothing is read


def test_other_data_of_that_name_is_refused(tmp_path):
    shop = write_small_shop(tmp_path / "shop")
    uri = f"parquet:{shop}"
    workspace = prepare(uri, "toyshop-clip", tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    shutil.rmtree(shop)
    write_small_shop(shop, seed=1)
    with pytest.raises(InputError, match=f"`dataset` and `encoder` must be the same .*{shop}"):
        prepare_here(workspace, uri)


def test_ids_are_exact_and_a_long_one_costs_only_itself(tmp_path):
    """One text of 200,000 characters among 120 users would be 96 MB in NumPy's fixed width."""
    shop = write_small_shop(tmp_path / "shop")
    interactions = pd.read_parquet(shop / "interactions.parquet")
    users = interactions.user_id.unique().tolist()
    odd = ["u", "u\0", "u\0\0", "u ", " u", "U", "é", "e\u0301", "\U0001f9e6", "", "x" * 200_000]
    renamed = dict(zip(users, odd, strict=False))
    interactions["user_id"] = interactions.user_id.replace(renamed)
    interactions.to_parquet(shop / "interactions.parquet")
    workspace = prepare(f"parquet:{shop}", "toyshop-clip", tmp_path / "cache")
    expected = [renamed.get(user, user) for user in users]
    assert open_split(workspace).user_ids.tolist() == expected
    assert sum(file.stat().st_size for file in workspace.split.iterdir()) < 1_000_000


@pytest.mark.parametrize(
    "data",
    [
        DataSettings(split="time", test_share=0.2),
        DataSettings(split="time", test_share=0.3),
        DataSettings(min_interactions=4),
        DataSettings(sample_users=20),
        DataSettings(sample_users=20, sample_seed=1),
    ],
)
def test_other_data_settings_are_another_workspace(tmp_path: Path, data: DataSettings) -> None:
    shop = write_small_shop(tmp_path / "shop")
    cache = tmp_path / "cache"
    whole = prepare(f"parquet:{shop}", "toyshop-clip", cache)
    workspace = prepare(f"parquet:{shop}", "toyshop-clip", cache, data=data)
    assert workspace.fingerprint != whole.fingerprint
    assert workspace.split != whole.split
    expected = split_dataset(load_folder(shop, "", data), data)
    found = open_split(workspace)
    assert found.user_ids.tolist() == expected.user_ids.tolist()
    for name in ("train", "validation"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.offsets.tolist() == other.offsets.tolist()
        assert one.items.tolist() == other.items.tolist()
    assert found.test_item.tolist() == expected.test_item.tolist()
    assert open_catalogue(workspace).num_items == expected.num_items

    shutil.rmtree(cache)
    prepare_here(workspace, f"parquet:{shop}", data)
    assert open_split(workspace).num_users == expected.num_users
