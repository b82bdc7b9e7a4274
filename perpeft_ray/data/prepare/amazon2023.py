"""Amazon Reviews 2023: from the published raw files of a category to the folder format.

Raw files and their fields: Hou et al., *Bridging Language and Items for Retrieval and
Recommendation*, arXiv 2403.03952. As in its authors' benchmark, the
first of a user's repeated items counts. The order of the steps is ours: subsample and filters,
items with metadata, repeats, k-core, images.
"""

from __future__ import annotations

import datetime as dt
import gzip
import itertools
import json
import logging
import shutil
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from perpeft_ray.config.rules import at_least
from perpeft_ray.data.interactions import ITEMS_FILE
from perpeft_ray.data.prepare.database import CLEAN_TITLE, Database, quoted
from perpeft_ray.data.prepare.images import (
    Limits,
    WantedImage,
    check_file_name,
    get_images,
    read_failures,
    write_failures,
)
from perpeft_ray.data.prepare.normalise import normalise
from perpeft_ray.data.prepare.recipe import SCRATCH, preparing, source_files
from perpeft_ray.data.prepare.report import PAPER_DATASETS
from perpeft_ray.errors import InputError
from perpeft_ray.screen import counted

_REVIEW = "{user_id: 'VARCHAR', parent_asin: 'VARCHAR', rating: 'DOUBLE', timestamp: 'BIGINT'}"
_META = (
    "{parent_asin: 'VARCHAR', title: 'VARCHAR', images: "
    "'STRUCT(variant VARCHAR, large VARCHAR, hi_res VARCHAR, thumb VARCHAR)[]'}"
)
_LOOKED_AT = 1000
"""Number of first lines of a raw file that are checked before the start."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """Which reviews and items of a category to keep."""

    core: int = 5
    """Minimum interactions of every user and item (k-core); 1 keeps all."""
    user_fraction: float | None = None
    """Share of users to keep, up to 1; default: the paper's for its categories, else all."""
    seed: int = 0
    """Seed of the user sample."""
    min_rating: float | None = None
    """Drop reviews with fewer stars."""
    since: dt.date | None = None
    """Keep reviews from this day on (UTC), YYYY-MM-DD."""
    until: dt.date | None = None
    """Keep reviews before this day (UTC), YYYY-MM-DD."""
    require_title: bool = True
    """Drop items without title."""
    require_image: bool = False
    """Drop items without an image address."""


def prepare_amazon2023(
    raw: Path,
    category: str,
    out: Path,
    selection: Selection,
    *,
    images: bool = True,
    limits: Limits | None = None,
    memory_gb: float = 1.0,
    again: bool = True,
) -> None:
    """Make the folder `out` from the raw files of a category; resumes an interrupted run.

    `category` is one of the paper's (`sports_outdoors`, …) or a raw file's name without its ending.
    Timestamps stay as published, in milliseconds; ties keep the raw file's order. Failed images are
    null in items.parquet and listed in images_failed.csv. If `out` exists, `again` fetches images
    once more that failed for a passing reason. `memory_gb` limits DuckDB, which takes nearly all
    the memory. Raises InputError for unusable options and files, and if nothing is left.
    """
    recipe = amazon2023_recipe(raw, category, selection, images=images)
    with preparing(out, recipe) as working:
        if working is None:
            if images and again:
                _fetch_again(out.absolute(), limits or Limits())
            return
        with Database(working / SCRATCH, memory_gb) as database:
            reviews, meta = _raw_files(raw, category)
            _select(database, reviews, meta, selection, _fraction(category, selection))
            normalise(database, working, (limits or Limits()) if images else None)


def amazon2023_recipe(
    raw: Path, category: str, selection: Selection, *, images: bool
) -> dict[str, Any]:
    """All that determines the folder of `prepare_amazon2023`; raises InputError as it does.

    Reads only the first lines of the raw files.
    """
    _check(category, selection)
    reviews, meta = _raw_files(raw, category)
    _check_fields(reviews, ("user_id", "parent_asin", "timestamp"))
    _check_fields(meta, ("parent_asin", "title", "images"))
    return {
        "source": "amazon2023",
        "category": category,
        "raw": source_files(reviews, meta),
        "selection": {
            key: value.isoformat() if isinstance(value, dt.date) else value
            for key, value in asdict(selection).items()
        },
        "images": images,
    }


def amazon2023_files(raw: Path, category: str) -> list[Path]:
    """A category's raw files; raises InputError if one is missing or unreadable."""
    amazon2023_recipe(raw, category, Selection(), images=True)
    return list(_raw_files(raw, category))


def _check(category: str, selection: Selection) -> None:
    fraction = _fraction(category, selection)
    if not 0 < fraction <= 1:
        raise InputError(f"`user_fraction` must be above 0 and at most 1, but is {fraction}")
    at_least("core", selection.core, 1)
    if selection.since and selection.until and selection.since >= selection.until:
        raise InputError(
            f"`since` must be before `until` ({selection.until}), but is {selection.since}"
        )


def _check_fields(file: Path, needed: tuple[str, ...]) -> None:
    """Raise InputError for another format, or if a field is missing in all first lines."""
    opened = gzip.open if file.suffix == ".gz" else open
    rule = f"`raw` file {file.name} must have lines of Amazon Reviews 2023"
    fields: dict[str, None] = {}
    try:
        with opened(file, "rt", encoding="utf-8-sig", errors="replace") as stream:
            for number, line in enumerate(itertools.islice(stream, _LOOKED_AT), start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise InputError(f"{rule}, but line {number} is no JSON object")
                    fields.update(dict.fromkeys(row))
    except json.JSONDecodeError as error:
        raise InputError(f"{rule}, but line {number} is no JSON: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{str(file)!r} must be a readable file, but {error}") from error
    missing = [field for field in needed if field not in fields]
    if missing:
        older = " as in the release of 2018" if {"reviewerID", "asin"} & fields.keys() else ""
        raise InputError(
            f"{rule} with the field `{missing[0]}`, "
            f"but has {', '.join(fields)[:200] or 'no lines'}{older}"
        )


def _fraction(category: str, selection: Selection) -> float:
    """Share of users to keep."""
    if selection.user_fraction is not None:
        return selection.user_fraction
    return PAPER_DATASETS[category].user_fraction if category in PAPER_DATASETS else 1.0


def _raw_files(raw: Path, category: str) -> tuple[Path, Path]:
    """A category's reviews and metadata."""
    name = PAPER_DATASETS[category].category if category in PAPER_DATASETS else category
    return (
        _raw_file(raw, "review_categories", name),
        _raw_file(raw, "meta_categories", f"meta_{name}"),
    )


def _raw_file(raw: Path, folder: str, name: str) -> Path:
    """A raw file, plain or compressed, in `raw` or in the publisher's folder layout."""
    check_file_name("`category`", name)
    for place in (raw, raw / folder, raw / "raw" / folder):
        for ending in (".jsonl", ".jsonl.gz"):
            file = place / f"{name}{ending}"
            if file.is_file():
                return file
    names = ", ".join(PAPER_DATASETS)
    raise InputError(
        f"`raw` must be a folder with {name}.jsonl or {name}.jsonl.gz, but {str(raw)!r} is not "
        f"(`category` is {names}, or the name of a raw file without its ending)"
    )


def _select(
    database: Database, reviews: Path, meta: Path, selection: Selection, fraction: float
) -> None:
    """Make `raw_interactions` and `raw_items` of the selected reviews.

    The row columns are `rowid`s of other tables: most of the work is on them, and ids are long.
    """
    with database.reading("`raw`"):
        database.logged_table(
            "reviews", _reviews(database.plain_path(reviews), selection, fraction)
        )
        database.logged_table("items", _items(database.plain_path(meta), selection))
    database.logged_table("users", "SELECT DISTINCT user_id FROM reviews")
    # The first of a user's repeats of an item counts.
    database.logged_table(
        "firsts",
        "SELECT users.rowid AS user_row, items.rowid AS item_row, timestamp, line "
        "FROM reviews JOIN users USING (user_id) JOIN items USING (item_id) "
        "QUALIFY row_number() OVER (PARTITION BY user_row, item_row ORDER BY timestamp, line) = 1",
    )
    _check_joined(database, reviews, meta)
    if not _make_core(database, selection.core):
        raise InputError(
            f"`category` must have interactions that pass the filters, but of "
            f"{database.count('reviews')} reviews of the chosen users and days and "
            f"{database.count('items')} items none is in the {selection.core}-core"
        )
    database.table(
        "raw_interactions",
        "SELECT user_id, item_id, timestamp, row_number() OVER (ORDER BY timestamp, line) AS row "
        "FROM core JOIN users ON users.rowid = user_row JOIN items ON items.rowid = item_row",
    )
    database.table(
        "raw_items",
        "SELECT item_id, title, url AS source, row_number() OVER (ORDER BY item_id) AS row, "
        "CASE WHEN url IS NOT NULL THEN 'images/' || item_id || '.jpg' END AS image "
        "FROM items WHERE rowid IN (SELECT item_row FROM core)",
    )
    for (item_id,) in database.rows("SELECT item_id FROM raw_items WHERE image IS NOT NULL"):
        check_file_name("`parent_asin` of an item with image", item_id)


def _make_core(database: Database, k: int) -> int:
    """Make the table `core`, the k-core of `firsts`; returns its rows, possibly 0.

    Removes users and items with fewer than k rows in turns until all have k; the order does not
    change the core.
    """
    left, before = database.table("core", "SELECT * FROM firsts"), -1
    while left != before:
        before = left
        for column in ("item_row", "user_row"):
            left = database.table(
                "core",
                f"SELECT * FROM core WHERE {column} IN "
                f"(SELECT {column} FROM core GROUP BY {column} HAVING count(*) >= {k:d})",
            )
    _log.info("%d-core: %s", k, counted(left, "row"))
    return left


def _check_joined(database: Database, reviews: Path, meta: Path) -> None:
    """Raise InputError if no review has an item of the metadata; warn if few have."""
    count, items = database.count("reviews"), database.count("items")
    (known,) = database.row("SELECT count(*) FROM reviews SEMI JOIN items USING (item_id)")
    if count and items and not known:
        raise InputError(
            f"{meta.name} must have the metadata of {reviews.name}, but none of its {items:,} "
            f"`parent_asin` is in the {count:,} reviews"
        )
    if known < count / 2:
        _log.warning(
            "reviews with an item of the metadata: only %s of %s", f"{known:,}", f"{count:,}"
        )


def _reviews(file: Path, selection: Selection, fraction: float) -> str:
    rules = ["user_id IS NOT NULL", "parent_asin IS NOT NULL", "timestamp IS NOT NULL"]
    if fraction < 1:
        # By a hash of the id: the same users in any order of the file.
        salt, limit = quoted(f"{selection.seed}:"), int(fraction * 2**64)
        rules.append(f"md5_number_lower({salt} || user_id) < CAST({limit} AS UBIGINT)")
    if selection.min_rating is not None:
        rules.append(f"rating >= CAST('{selection.min_rating}' AS DOUBLE)")
    for day, sign in ((selection.since, ">="), (selection.until, "<")):
        if day is not None:
            midnight = dt.datetime.combine(day, dt.time(), dt.UTC)
            rules.append(f"timestamp {sign} {int(midnight.timestamp()) * 1000}")
    return (
        "SELECT user_id, parent_asin AS item_id, timestamp, line "
        f"FROM ({_lines(file, _REVIEW)}) WHERE {' AND '.join(rules)}"
    )


def _items(file: Path, selection: Selection) -> str:
    rules = ["item_id IS NOT NULL"]
    if selection.require_title:
        rules.append("title IS NOT NULL")
    if selection.require_image:
        rules.append("url IS NOT NULL")
    return (
        "SELECT item_id, title, url FROM ("
        f"SELECT parent_asin AS item_id, {CLEAN_TITLE} AS title, line, "
        "coalesce(picture.large, picture.hi_res, picture.thumb) AS url FROM ("
        "SELECT *, coalesce(list_filter(images, lambda image: image.variant = 'MAIN')[1], "
        f"images[1]) AS picture FROM ({_lines(file, _META)}))) WHERE {' AND '.join(rules)} "
        "QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY line) = 1"
    )


def _lines(file: Path, fields: str) -> str:
    """SQL of a raw file's lines in order, numbered by `line`."""
    return (
        "SELECT *, row_number() OVER () AS line FROM "
        f"read_json({quoted(file)}, format = 'newline_delimited', columns = {fields}, "
        "hive_partitioning = false)"
    )


def _fetch_again(out: Path, limits: Limits) -> None:
    """Fetch the images of a prepared folder that failed for a passing reason.

    After a kill, the next call resumes without fetching an image twice.
    """
    failures = read_failures(out)
    wanted = {
        one.item_id: WantedImage(one.item_id, one.image, out / "images" / f"{one.item_id}.jpg")
        for one in failures
        if one.passing
    }
    if not wanted:
        return
    _log.info("fetching %s again that could not be reached", counted(len(wanted), "image"))
    scratch = out / SCRATCH
    scratch.mkdir(exist_ok=True)
    try:
        failed = {one.item_id: one for one in get_images(list(wanted.values()), scratch, limits)}
        found = wanted.keys() - failed.keys()
        with pq.ParquetFile(out / ITEMS_FILE) as parquet:
            items = parquet.read()
        images = [
            f"images/{item_id}.jpg" if item_id in found else image
            for item_id, image in zip(
                items["item_id"].to_pylist(), items["image"].to_pylist(), strict=True
            )
        ]
        at = items.schema.get_field_index("image")
        items = items.set_column(at, "image", pa.array(images, pa.string()))
        pq.write_table(items, scratch / ITEMS_FILE, compression="zstd")
        (scratch / ITEMS_FILE).replace(out / ITEMS_FILE)
        left = [failed.get(one.item_id, one) for one in failures if one.item_id not in found]
        write_failures(out, left)
    finally:
        shutil.rmtree(scratch)
