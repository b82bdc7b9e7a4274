"""Tables of a shop, prepared in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from perpeft_ray.data.interactions import load_folder
from perpeft_ray.data.prepare.normalise import Repairs
from perpeft_ray.data.prepare.table import TableSource, prepare_table

Row = tuple[str, str, int]


def prepare(folder: Path, orders: bytes | str, name: str = "orders.csv", **options: Any) -> Repairs:
    """Write a file of interactions, and prepare it into `folder / "out"`."""
    data = orders.encode() if isinstance(orders, str) else orders
    (folder / name).write_bytes(data)
    return prepare_table(TableSource(folder / name, **options), folder / "out")


def rows(folder: Path) -> list[Row]:
    table = load_folder(folder / "out", "").interactions
    return list(table.itertuples(index=False, name=None))


PLAIN = "user,item,time\nu,a,2024-01-02\nv,b,2024-01-03\n"
