"""Amazon Reviews 2023: from the published raw files of a category to the folder format.

Raw files and their fields: Hou et al., *Bridging Language and Items for Retrieval and
Recommendation*, arXiv 2403.03952. As in its authors' benchmark, of repeats of a user's item the
first counts. The order of the steps is ours: subsample and filters, items with metadata, repeats,
k-core, images.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perpeft_ray.data.interactions import INTERACTIONS_FILE, ITEMS_FILE
from perpeft_ray.data.prepare.database import Database, clean_text
from perpeft_ray.data.prepare.download import Download, Limits, download_images
from perpeft_ray.data.prepare.images import (
    check_file_name,
    image_progress,
    write_failures,
)
from perpeft_ray.data.prepare.kcore import make_core
from perpeft_ray.data.prepare.paper import PAPER_DATASETS
from perpeft_ray.data.prepare.recipe import SCRATCH, begun_to_read, preparing, source_files
from perpeft_ray.errors import InputError

_REVIEW = "{user_id: 'VARCHAR', parent_asin: 'VARCHAR', rating: 'DOUBLE', timestamp: 'BIGINT'}"
_META = (
    "{parent_asin: 'VARCHAR', title: 'VARCHAR', images: "
    "'STRUCT(variant VARCHAR, large VARCHAR, hi_res VARCHAR, thumb VARCHAR)[]'}"
)


@dataclass(frozen=True)
class Selection:
    """Which reviews and items of a category are kept."""

    core: int = 5
    """Every user and every item has at least so many interactions; 1 keeps all."""
    user_fraction: float | None = None
    """Users that are kept, of 1; by default the paper's for its categories, or else all."""
    seed: int = 0
    """Of the subsample of users."""
    min_rating: float | None = None
    """Reviews with fewer stars are left out."""
    since: dt.date | None = None
    """First day (UTC) of reviews that are kept, as YYYY-MM-DD."""
    until: dt.date | None = None
    """First day (UTC) of reviews that are not."""
    require_title: bool = True
    """Items without title are left out."""
    require_image: bool = False
    """Items without an image address are left out."""


def prepare_amazon2023(
    raw: Path,
    category: str,
    out: Path,
    selection: Selection,
    *,
    images: bool = True,
    limits: Limits | None = None,
    memory_gb: float = 1.0,
) -> None:
    """Make the folder `out` from the raw files of a category; goes on where it was stopped.

    `category` is one of the paper's (`sports_outdoors`, …) or a raw file's name without its ending.
    Timestamps stay as published, in milliseconds; ties keep the raw file's order. Images that fail
    are null in items.parquet and listed in images_failed.csv. `memory_gb` bounds DuckDB, which
    is nearly all the memory. Raises InputError for options and files that cannot be used and where
    nothing is left.
    """
    recipe = amazon2023_recipe(raw, category, selection, images=images)
    with preparing(out, recipe) as working:
        if working is None:
            return
        with Database(working / SCRATCH / "tables.duckdb", memory_gb) as database:
            reviews, meta = _raw_files(raw, category)
            _select(database, reviews, meta, selection, _fraction(category, selection))
            failed = _fetch_images(database, working, limits or Limits()) if images else None
            _write(database, working, failed)


def amazon2023_recipe(
    raw: Path, category: str, selection: Selection, *, images: bool
) -> dict[str, Any]:
    """What decides the folder that `prepare_amazon2023` makes; raises InputError as it does."""
    _check(category, selection)
    return {
        "source": "amazon2023",
        "category": category,
        "raw": source_files(*_raw_files(raw, category)),
        "selection": {
            key: value.isoformat() if isinstance(value, dt.date) else value
            for key, value in asdict(selection).items()
        },
        "images": images,
    }


def amazon2023_files(raw: Path, category: str) -> list[Path]:
    """A category's raw files, begun to be read; raises InputError where one is missing or cannot
    be read."""
    return begun_to_read(amazon2023_recipe(raw, category, Selection(), images=True))


def _check(category: str, selection: Selection) -> None:
    fraction = _fraction(category, selection)
    if not 0 < fraction <= 1:
        raise InputError(f"`user_fraction` must be above 0 and at most 1, but is {fraction}")
    if selection.core < 1:
        raise InputError(f"`core` must be at least 1, but is {selection.core}")
    if selection.since and selection.until and selection.since >= selection.until:
        raise InputError(
            f"`since` must be before `until` ({selection.until}), but is {selection.since}"
        )


def _fraction(category: str, selection: Selection) -> float:
    """Of the users to keep."""
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
    """A raw file, plain or compressed, in `raw` or where the publisher's folders have it."""
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
    """Make the tables `users` (user_id), `items` (item_id, title, url) and `core`, the chosen
    reviews (user_row, item_row, timestamp, line), whose rows are those tables' `rowid`: ids are
    long, and most of the work is on these."""
    with database.reading("`raw`"):
        database.table("reviews", *_reviews(reviews, selection, fraction))
        database.table("items", *_items(meta, selection))
    database.table("users", "SELECT DISTINCT user_id FROM reviews")
    # Of a user's repeats of an item the first counts.
    database.table(
        "firsts",
        "SELECT users.rowid AS user_row, items.rowid AS item_row, timestamp, line "
        "FROM reviews JOIN users USING (user_id) JOIN items USING (item_id) "
        "QUALIFY row_number() OVER (PARTITION BY user_row, item_row ORDER BY timestamp, line) = 1",
    )
    left = make_core(database, "core", "firsts", selection.core)
    if not left:
        raise InputError(
            f"`category` must have interactions that pass the filters, but of "
            f"{database.count('reviews')} reviews of the chosen users and days and "
            f"{database.count('items')} items none is in the {selection.core}-core"
        )


def _reviews(file: Path, selection: Selection, fraction: float) -> tuple[str, list[Any]]:
    rules = ["user_id IS NOT NULL", "parent_asin IS NOT NULL", "timestamp IS NOT NULL"]
    values: list[Any] = [str(file)]
    if fraction < 1:
        # By a hash of the id: the same users whatever the order of the file.
        rules.append("md5_number_lower(? || user_id) < CAST(? AS UBIGINT)")
        values += [f"{selection.seed}:", int(fraction * 2**64)]
    if selection.min_rating is not None:
        rules.append("rating >= ?")
        values.append(selection.min_rating)
    for day, sign in ((selection.since, ">="), (selection.until, "<")):
        if day is not None:
            rules.append(f"timestamp {sign} ?")
            midnight = dt.datetime.combine(day, dt.time(), dt.UTC)
            values.append(int(midnight.timestamp()) * 1000)
    query = (
        "SELECT user_id, parent_asin AS item_id, timestamp, line FROM "
        "(SELECT *, row_number() OVER () AS line FROM "
        f"read_json(?, format = 'newline_delimited', columns = {_REVIEW})) "
        f"WHERE {' AND '.join(rules)}"
    )
    return query, values


def _items(file: Path, selection: Selection) -> tuple[str, list[Any]]:
    rules = ["item_id IS NOT NULL"]
    if selection.require_title:
        rules.append("title IS NOT NULL")
    if selection.require_image:
        rules.append("url IS NOT NULL")
    query = (
        "SELECT item_id, title, url FROM ("
        f"SELECT parent_asin AS item_id, {clean_text('title')} AS title, line, "
        "coalesce(picture.large, picture.hi_res, picture.thumb) AS url FROM ("
        "SELECT *, row_number() OVER () AS line, coalesce("
        "list_filter(images, lambda image: image.variant = 'MAIN')[1], images[1]) AS picture "
        f"FROM read_json(?, format = 'newline_delimited', columns = {_META}))) "
        f"WHERE {' AND '.join(rules)} "
        "QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY line) = 1"
    )
    return query, [str(file)]


def _fetch_images(database: Database, working: Path, limits: Limits) -> list[str]:
    """Download the images of the items that are left; ids of those that failed."""
    folder = working / "images"
    folder.mkdir(exist_ok=True)
    wanted = database.rows(
        "SELECT item_id, url FROM items WHERE url IS NOT NULL "
        "AND rowid IN (SELECT item_row FROM core) ORDER BY item_id"
    )

    def downloads() -> Iterator[Download]:
        for item_id, url in wanted:
            check_file_name("`parent_asin` of an item with image", item_id)
            yield Download(item_id, url, folder / f"{item_id}.jpg")

    with image_progress(len(wanted)) as advance:
        failures = download_images(downloads(), limits, advance)
    write_failures(working, failures)
    return [failure.item_id for failure in failures]


def _write(database: Database, working: Path, failed: list[str] | None) -> None:
    image = "NULL"
    if failed is not None:
        database.fill("failed", ["item_id"], [[item_id] for item_id in failed])
        image = (
            "CASE WHEN url IS NOT NULL AND item_id NOT IN (SELECT item_id FROM failed) "
            "THEN 'images/' || item_id || '.jpg' END"
        )
    database.write_parquet(
        f"SELECT item_id, title, CAST({image} AS VARCHAR) AS image FROM items "
        "WHERE rowid IN (SELECT item_row FROM core) ORDER BY item_id",
        working / ITEMS_FILE,
    )
    database.write_parquet(
        "SELECT user_id, item_id, timestamp FROM core JOIN users ON users.rowid = user_row "
        "JOIN items ON items.rowid = item_row ORDER BY timestamp, line",
        working / INTERACTIONS_FILE,
    )
