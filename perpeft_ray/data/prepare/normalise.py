"""A folder of one's own, checked and normalised: what can be repaired is, and all of it is told.

Ids become texts and times whole numbers (clock times: milliseconds since 1970); blank texts become
null and spaces single; rows without an id or time, repeated item ids and interactions with unknown
items go; images that are missing or broken become null.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from perpeft_ray.data.interactions import INTERACTIONS_FILE, ITEMS_FILE, check_inside
from perpeft_ray.data.prepare.database import Database, clean_text, quoted
from perpeft_ray.data.prepare.images import (
    FAILURES_FILE,
    Copy,
    copy_images,
    image_progress,
    write_failures,
)
from perpeft_ray.data.prepare.recipe import RECIPE_FILE, SCRATCH, preparing, source_files
from perpeft_ray.errors import InputError

REPAIRS_FILE = "repairs.json"

_TEXT = ("VARCHAR", "ENUM")
_WHOLE = tuple(
    sign + size
    for sign in ("", "U")
    for size in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")
)
_CLOCK = ("TIMESTAMP", "DATE")
_OWN_NAMES = (INTERACTIONS_FILE, ITEMS_FILE, RECIPE_FILE, FAILURES_FILE, REPAIRS_FILE, SCRATCH)


@dataclass(frozen=True)
class Repairs:
    """How many rows were left out or changed."""

    incomplete_interactions: int
    """Left out: no user, item or time."""
    unknown_items: int
    """Interactions left out: their item is not among the items."""
    incomplete_items: int
    """Left out: no id."""
    duplicate_items: int
    """Left out: the id was there before."""
    blank_titles: int
    """Titles of nothing but spaces, now null."""
    failed_images: int
    """Images missing or broken, now null and listed in images_failed.csv."""


def prepare_parquet(source: Path, out: Path, *, memory_gb: float = 1.0) -> Repairs:
    """Make the folder `out` from one of the same form that may have faults; what was repaired.

    Columns `title` and `image` may be absent, ids whole numbers, times clock times. Order is kept,
    repeats and ties stay. Goes on where it was stopped. Raises InputError for missing or unreadable
    tables, missing columns, columns of other types, image paths that leave the folder, and where no
    interaction is left.
    """
    if not source.is_dir():
        raise InputError(f"the data must be a folder, but {str(source)!r} is none")
    files = [source / INTERACTIONS_FILE, source / ITEMS_FILE]
    for file in files:
        if not file.is_file():
            raise InputError(f"the folder must have {file.name}, but {str(file)!r} is missing")
    recipe = {"source": "parquet", "raw": source_files(*files)}
    with preparing(out, recipe) as working:
        if working is not None:
            with Database(working / SCRATCH / "tables.duckdb", memory_gb) as database:
                repairs = _normalise(database, source, working)
            (working / REPAIRS_FILE).write_text(json.dumps(asdict(repairs), indent=1) + "\n")
    return Repairs(**json.loads((out / REPAIRS_FILE).read_text()))


def _normalise(database: Database, source: Path, working: Path) -> Repairs:
    with database.reading("the folder"):
        raw_interactions = database.table("raw_interactions", _raw_interactions(database, source))
        raw_items = database.table("raw_items", _raw_items(database, source))
    with_id = database.table("with_id", "SELECT * FROM raw_items WHERE item_id IS NOT NULL")
    items = database.table(
        "items",
        "SELECT * FROM with_id "
        "QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY file_row_number) = 1",
    )
    complete = database.table(
        "complete",
        "SELECT * FROM raw_interactions WHERE user_id IS NOT NULL AND item_id IS NOT NULL "
        "AND timestamp IS NOT NULL",
    )
    known = database.table(
        "interactions", "SELECT * FROM complete WHERE item_id IN (SELECT item_id FROM items)"
    )
    if not known:
        raise InputError(
            f"the folder must have interactions with its items, but of {raw_interactions:,} rows "
            f"and {raw_items:,} items none is left"
        )
    (blank,) = database.row(
        f"SELECT count(*) FROM items WHERE title IS NOT NULL AND {clean_text('title')} IS NULL"
    )
    failed_images = _copy_images(database, source, working)
    database.write_parquet(
        "SELECT user_id, item_id, timestamp FROM interactions ORDER BY file_row_number",
        working / INTERACTIONS_FILE,
    )
    database.write_parquet(
        f"SELECT item_id, {clean_text('title')} AS title, CASE WHEN image NOT IN "
        "(SELECT image FROM failed) THEN image END AS image FROM items ORDER BY file_row_number",
        working / ITEMS_FILE,
    )
    return Repairs(
        incomplete_interactions=raw_interactions - complete,
        unknown_items=complete - known,
        incomplete_items=raw_items - with_id,
        duplicate_items=with_id - items,
        blank_titles=blank,
        failed_images=failed_images,
    )


def _raw_interactions(database: Database, source: Path) -> str:
    table = _Table(database, source / INTERACTIONS_FILE)
    kind = table.types.get("timestamp", "")
    if kind.startswith("TIMESTAMP WITH"):
        time = "epoch_ms(timestamp)"
    elif kind.startswith(_CLOCK):
        time = "epoch_ms(CAST(timestamp AS TIMESTAMP))"
    else:
        table.check("timestamp", _WHOLE, "whole numbers or clock times")
        time = "CAST(timestamp AS BIGINT)"
    return (
        f"SELECT {table.id('user_id')}, {table.id('item_id')}, {time} AS timestamp, "
        f"file_row_number FROM {table.source}"
    )


def _raw_items(database: Database, source: Path) -> str:
    table = _Table(database, source / ITEMS_FILE)
    title, image = table.optional_text("title"), table.optional_text("image")
    return (
        f"SELECT {table.id('item_id')}, {title} AS title, "
        f"CASE WHEN trim({image}) <> '' THEN {image} END AS image, "
        f"file_row_number FROM {table.source}"
    )


class _Table:
    """A Parquet file whose columns are read by their types."""

    def __init__(self, database: Database, file: Path) -> None:
        self._file, self._database = file, database
        self.source = f"read_parquet({quoted(file)}, file_row_number = true)"
        described = database.rows(f"DESCRIBE SELECT * FROM {self.source}")
        self.types: dict[str, str] = {row[0]: row[1] for row in described}

    def id(self, column: str) -> str:
        self.check(column, (*_TEXT, *_WHOLE), "texts or whole numbers")
        return f"CAST({column} AS VARCHAR) AS {column}"

    def optional_text(self, column: str) -> str:
        """SQL for a column of texts; nulls where the file has none or only nulls."""
        if column not in self.types:
            return "CAST(NULL AS VARCHAR)"
        if self._database.row(f"SELECT count({column}) FROM {self.source}")[0]:
            self.check(column, _TEXT, "texts")
        return f"CAST({column} AS VARCHAR)"

    def check(self, column: str, allowed: tuple[str, ...], words: str) -> None:
        if column not in self.types:
            columns = ", ".join(name for name in self.types if name != "file_row_number")
            raise InputError(
                f"{self._file.name} must have the column `{column}`, but its columns are {columns}"
            )
        if self.types[column].partition("(")[0] not in allowed:
            raise InputError(
                f"{self._file.name} column `{column}` must have {words}, "
                f"but is of type {self.types[column]}"
            )


def _copy_images(database: Database, source: Path, working: Path) -> int:
    """Copy the items' images; those that failed, also left in the table `failed` (image)."""
    rule = f"{ITEMS_FILE} column `image` must name files inside the folder"
    copies: dict[Path, Copy] = {}
    spelled: dict[str, Path] = {}
    for item_id, image in database.rows(
        "SELECT item_id, image FROM items WHERE image IS NOT NULL ORDER BY file_row_number"
    ):
        check_inside(rule, source, image)
        target = working / image
        if Path(image).parts[0] in _OWN_NAMES:
            raise InputError(f"{rule} with other names than {image!r}")
        spelled[image] = target
        copies.setdefault(target, Copy(item_id, source / image, target))
    with image_progress(len(copies)) as advance:
        failures = copy_images(copies.values(), advance)
    write_failures(working, failures)
    lost = {working / Path(failure.image).relative_to(source) for failure in failures}
    database.fill("failed", ["image"], [[image] for image, at in spelled.items() if at in lost])
    return len(failures)
