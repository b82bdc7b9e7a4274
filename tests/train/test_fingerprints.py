"""What counts as a change of data or encoder, and what does not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from perpeft_ray.data.interactions import load_folder
from perpeft_ray.encoder.source import TOYSHOP_CLIP
from perpeft_ray.train.fingerprints import Fingerprints, fingerprints
from tests.small_shop import write_small_shop


@pytest.fixture
def shop(tmp_path):
    return write_small_shop(tmp_path / "shop")


@pytest.fixture
def encoder(tmp_path):
    return Path(shutil.copytree(TOYSHOP_CLIP, tmp_path / "encoder"))


def _rewrite(file: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    change(pd.read_parquet(file)).to_parquet(file, index=False)


def _now(shop: Path, encoder: Path) -> Fingerprints:
    return fingerprints(load_folder(shop, f"parquet:{shop}"), str(encoder))


def _swap_times(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(timestamp=-table.timestamp)


def _rename_titles(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(title="something else")


def _new_image(shop: Path) -> None:
    name = pd.read_parquet(shop / "items.parquet").image.dropna().iloc[0]
    Image.new("RGB", (32, 32), (1, 2, 3)).save(shop / name)


CHANGES: dict[str, tuple[str, Callable[[Path, Path], object]]] = {
    "times": ("tables", lambda shop, _: _rewrite(shop / "interactions.parquet", _swap_times)),
    "rows": ("tables", lambda shop, _: _rewrite(shop / "interactions.parquet", lambda t: t[:-1])),
    "order": ("tables", lambda shop, _: _rewrite(shop / "interactions.parquet", lambda t: t[::-1])),
    "titles": ("tables", lambda shop, _: _rewrite(shop / "items.parquet", _rename_titles)),
    "image bytes": ("images", lambda shop, _: _new_image(shop)),
    "weights": ("encoder", lambda _, encoder: _flip_last_byte(encoder / "model.safetensors")),
    "tokenizer": ("encoder", lambda _, encoder: _append(encoder / "tokenizer.json")),
    "pooling": ("encoder", lambda _, encoder: _pool_first(encoder)),
}
"""The part that changes, and how."""


def _flip_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _append(file: Path) -> None:
    file.write_text(file.read_text() + "\n")


def _pool_first(encoder: Path) -> None:
    (encoder / "1_Pooling").mkdir()
    (encoder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')


@pytest.mark.parametrize(("part", "change"), CHANGES.values(), ids=CHANGES)
def test_a_change_is_seen_in_its_part_alone(part, change, shop, encoder):
    before = _now(shop, encoder)
    change(shop, encoder)
    after = _now(shop, encoder)
    assert {p for p, value in vars(before).items() if value != vars(after)[p]} == {part}


def test_the_same_values_in_other_files_are_no_change(shop, encoder):
    before = _now(shop, encoder)
    for name in ("interactions", "items"):
        file = shop / f"{name}.parquet"
        pq.write_table(pq.read_table(file), file, compression="zstd", row_group_size=3)
    (shop / "notes.txt").write_text("unused")
    (encoder / "README.md").write_text("unused")
    moved = shop.rename(shop.with_name("moved"))
    assert _now(moved, encoder) == before
