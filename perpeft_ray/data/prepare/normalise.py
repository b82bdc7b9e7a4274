"""Writes a data folder from raw tables: repairs what it can, and reports every repair.

Ids become text and times whole numbers, as `ParquetTable` reads them. Blank text becomes null,
spaces single. Drops rows without id or time, repeated item ids and interactions with unknown items.
Missing and broken images become null.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from perpeft_ray.data.interactions import (
    INTERACTIONS_FILE,
    ITEMS_FILE,
    check_inside,
    open_tables,
)
from perpeft_ray.data.prepare.database import CLEAN_TITLE, Database
from perpeft_ray.data.prepare.images import (
    FAILURES_FILE,
    Limits,
    WantedImage,
    get_images,
    write_failures,
)
from perpeft_ray.data.prepare.recipe import (
    RECIPE_FILE,
    SCRATCH,
    contents,
    contents_hash,
    preparing,
)
from perpeft_ray.data.tables import ParquetTable
from perpeft_ray.errors import InputError
from perpeft_ray.screen import counted

REPAIRS_FILE = "repairs.json"

_OWN_NAMES = (INTERACTIONS_FILE, ITEMS_FILE, RECIPE_FILE, FAILURES_FILE, REPAIRS_FILE, SCRATCH)


@dataclass(frozen=True)
class Repairs:
    """Numbers of dropped or changed rows."""

    incomplete_interactions: int
    """Interactions dropped: no user, item or time."""
    unknown_items: int
    """Interactions dropped: unknown item."""
    incomplete_items: int
    """Items dropped: no id."""
    duplicate_items: int
    """Items dropped: repeated id."""
    blank_titles: int
    """Titles of only spaces, now null."""
    failed_images: int
    """Missing or broken images, now null and listed in images_failed.csv."""
    examples: Mapping[str, str] = field(default_factory=dict, compare=False)
    """An example id for each of the above."""
    notes: Sequence[str] = field(default=(), compare=False)
    """How the source was understood and what was unreadable; one line each."""

    def lines(self) -> list[str]:
        """The report as lines; every count appears, also 0."""
        words = {
            "incomplete_interactions": ("interaction", "without user, item or time left out"),
            "unknown_items": ("interaction", "with an unknown item left out"),
            "incomplete_items": ("item", "without id left out"),
            "duplicate_items": ("item", "with an id that was there before left out"),
            "blank_titles": ("blank title", "made null"),
        }
        lines = list(self.notes)
        for name, (noun, what) in words.items():
            example = f", such as {self.examples[name]!r}" if name in self.examples else ""
            lines.append(f"{counted(getattr(self, name), noun)} {what}{example}")
        return lines


def prepare_parquet(source: Path, out: Path, *, memory_gb: float = 1.0) -> Repairs:
    """Make the folder `out` from a possibly faulty one of the same form; returns the repairs.

    Columns `title` and `image` may be absent. Keeps order, repeats and ties. Resumes an interrupted
    run; after any change of a table or image `out` must be another folder. Raises InputError for
    missing or unreadable tables, columns that are missing or of other types, image paths that leave
    the folder, and if no interaction is left.
    """
    if not source.is_dir():
        raise InputError(f"the data must be a folder, but {str(source)!r} is not")
    interactions, items = open_tables("the folder", source, optional=("title", "image"))
    recipe = {
        "source": "parquet",
        "raw": contents(*interactions.files, *items.files),
        "images": contents_hash(source, _image_names(source, items)),
    }
    with preparing(out, recipe) as working:
        if working is not None:
            with Database(working / SCRATCH, memory_gb) as database:
                database.load("raw_interactions", interactions.batches(nulls=True))
                database.load("loaded", items.batches(nulls=True))
                database.table("raw_items", "SELECT *, image AS source FROM loaded")
                normalise(database, working, source)
    return read_repairs(out)


def read_repairs(out: Path) -> Repairs:
    """The repairs that `normalise` recorded in a folder."""
    return Repairs(**json.loads((out / REPAIRS_FILE).read_text(encoding="utf-8")))


def _image_names(source: Path, items: ParquetTable) -> list[str]:
    """The distinct image paths of the items, in order, checked."""
    rule = f"{ITEMS_FILE} column `image` must name files inside the folder"
    names: dict[str, None] = {}
    for batch in items.batches(nulls=True):
        for image in batch.column("image").to_pylist():
            if image is not None and image.strip(" ") and image not in names:
                check_inside(rule, source, image)
                if Path(image).parts[0] in _OWN_NAMES:
                    raise InputError(f"{rule} with other names than {image!r}")
                names[image] = None
    return list(names)


def normalise(
    database: Database, working: Path, images: Path | Limits | None, notes: Sequence[str] = ()
) -> None:
    """Write the tables, images and repairs of a data folder from two tables of the database.

    `raw_interactions` has user_id, item_id, timestamp and row; `raw_items` has item_id, title,
    image, source and row. `image` is a checked path in the new folder, `source` an address to
    download within the limits `images`, or a path to copy from below `images`; without `images`
    items have none. Raises InputError if no interaction is left.
    """
    raw_items = database.count("raw_items")
    with_id = database.table(
        "with_id",
        "SELECT * REPLACE (CASE WHEN trim(image) <> '' THEN image END AS image) "
        "FROM raw_items WHERE item_id IS NOT NULL",
    )
    items = database.table(
        "items",
        "SELECT * FROM with_id QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY row) = 1",
    )
    whole = "user_id IS NOT NULL AND item_id IS NOT NULL AND timestamp IS NOT NULL"
    among = "item_id IN (SELECT item_id FROM items)"
    raw_interactions, complete = database.row(
        f"SELECT count(*), count(*) FILTER ({whole}) FROM raw_interactions"
    )
    known = database.table(
        "interactions", f"SELECT * FROM raw_interactions WHERE {whole} AND {among}"
    )
    examples = {
        "unknown_items": _first(database, f"item_id FROM raw_interactions WHERE NOT {among}"),
        "duplicate_items": _first(
            database, "item_id FROM with_id GROUP BY item_id HAVING count(*) > 1"
        ),
    }
    if not known:
        ours, theirs = _first(database, "item_id FROM items"), examples["unknown_items"]
        both = ours is not None and theirs is not None
        raise InputError(
            "the folder must have interactions with its items, but of "
            f"{counted(raw_interactions, 'row')} and {counted(raw_items, 'item')} none is left"
            + (f" (items such as {ours!r}, interactions with {theirs!r})" if both else "")
        )
    (blank,) = database.row(
        f"SELECT count(*) FROM items WHERE title IS NOT NULL AND {CLEAN_TITLE} IS NULL"
    )
    failed_images = _write_images(database, working, images)
    database.write_parquet(
        "SELECT user_id, item_id, timestamp FROM interactions ORDER BY row",
        working / INTERACTIONS_FILE,
    )
    database.write_parquet(
        f"SELECT item_id, {CLEAN_TITLE} AS title, "
        "CASE WHEN image IN (SELECT image FROM found) THEN image END AS image "
        "FROM items ORDER BY row",
        working / ITEMS_FILE,
    )
    repairs = Repairs(
        incomplete_interactions=raw_interactions - complete,
        unknown_items=complete - known,
        incomplete_items=raw_items - with_id,
        duplicate_items=with_id - items,
        blank_titles=blank,
        failed_images=failed_images,
        examples={name: text for name, text in examples.items() if text is not None},
        notes=tuple(notes),
    )
    text = json.dumps(asdict(repairs), indent=1, ensure_ascii=False)
    (working / REPAIRS_FILE).write_text(text + "\n", encoding="utf-8")


def _first(database: Database, query: str) -> str | None:
    found = database.rows(f"SELECT {query} LIMIT 1")
    return found[0][0] if found else None


def _write_images(database: Database, working: Path, images: Path | Limits | None) -> int:
    """Get the items' images; makes the table `found` (image) and returns the failures."""
    wanted: dict[Path, WantedImage] = {}
    spelled: dict[str, Path] = {}
    query = "SELECT item_id, image, source FROM items WHERE image IS NOT NULL ORDER BY row"
    for item_id, image, source in database.rows(query) if images is not None else ():
        file = spelled[image] = working / image
        address = str(images / source) if isinstance(images, Path) else source
        wanted.setdefault(file, WantedImage(item_id, address, file))
    failures = get_images(
        list(wanted.values()), working / SCRATCH, images if isinstance(images, Limits) else None
    )
    write_failures(working, failures)
    database.fill("found", image=[image for image, file in spelled.items() if file.exists()])
    return len(failures)
