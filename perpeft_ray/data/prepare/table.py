"""Makes a data folder from any tables of interactions and items; columns by name or guess."""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from perpeft_ray.data.interactions import check_inside
from perpeft_ray.data.prepare.database import Database, quoted
from perpeft_ray.data.prepare.normalise import Repairs, normalise, read_repairs
from perpeft_ray.data.prepare.recipe import SCRATCH, contents, contents_hash, preparing
from perpeft_ray.data.prepare.text_tables import TextTable, open_text_table
from perpeft_ray.data.prepare.times import Times, understand
from perpeft_ray.data.tables import parts
from perpeft_ray.errors import InputError
from perpeft_ray.screen import counted

MOST_UNREADABLE = 0.1
"""Largest share of unreadable times; more mean that the form is another."""

_GUESSES = {
    "user": (
        "user_id user uid customer_id customer client_id client member_id member visitor_id "
        "visitor account_id account buyer_id buyer reviewer_id person_id"
    ),
    "item": (
        "item_id item iid product_id product sku asin parent_asin article_id article movie_id "
        "movie book_id book isbn track_id song_id stock_code news_id video_id"
    ),
    "time": (
        "timestamp datetime date_time time date unix_time ts created_at order_date order_time "
        "purchase_date purchased_at invoice_date event_time event_date review_time"
    ),
    "title": "title name item_name product_name item_title product_title description",
    "image": "image image_path image_file img photo picture file_name file",
}
_GUESSES["key"] = _GUESSES["item"] + " id key code"
"""Names that a column may have, likeliest first; case and `_` do not matter."""
_ORDER_TITLES = "title item_name product_name item_title product_title"
"""The same for titles in a table of orders, where `name` may be the user's."""
_WORDS = {"user": "users", "item": "items", "time": "times", "key": "item ids"}
_NOTHING = r"|NULL|null|NaN|nan|None|\\N|#N/A"
"""Pattern of texts that stand for nothing."""


@dataclass(frozen=True)
class TableSource:
    """Tables and photos of a shop."""

    interactions: Path
    """CSV, TSV, JSON lines (also .gz) or Parquet: one row per order, view or rating."""
    items: Path | None = None
    """A table with one row per item. None: the items of the interactions."""
    images: Path | None = None
    """Folder of the items' images. None: no images."""
    user: str | None = None
    """Column of users. This and the next columns are guessed by default."""
    item: str | None = None
    """Column of items, in both tables."""
    key: str | None = None
    """Column of ids in the table of items, if it has another name there."""
    time: str | None = None
    """Column of times, or two separated by a comma: "date, hour"."""
    title: str | None = None
    """Column of titles, or several to join: "name, brand, price"."""
    image: str | None = None
    """Column of image paths below `images`. None: files are named after items."""
    date_format: str | None = None
    """Form of the times for strptime, such as %d/%m/%Y, if the data do not show it."""
    delimiter: str | None = None
    """Separator of the columns, if it is not one of , ; | and tab."""
    encoding: str | None = None
    """Encoding of the files, if it is not UTF-8, UTF-16 or Windows-1252."""


def prepare_table(source: TableSource, out: Path, *, memory_gb: float = 0.7) -> Repairs:
    """Make the folder `out`; returns how the tables were understood and what was left out.

    Ids are the files' text without surrounding space, and without `.0` if a whole column ends in
    it, as pandas writes numbers with gaps. After a kill, tables are read again; copied images stay.
    Raises InputError for options without their table, unreadable files, columns that are missing,
    the same or cannot be guessed, times of several forms, ids that have lost digits, image paths
    that leave their folder, more than 1 in 10 unreadable rows, and if no row is left.
    """
    if source.delimiter is not None and not re.fullmatch(r'[^"\r\n]', source.delimiter):
        raise InputError(
            f"`delimiter` must be one character and no quote, but is {source.delimiter!r}"
        )
    for name, needed in (("image", "images"), ("key", "items")):
        if (given := getattr(source, name)) is not None and getattr(source, needed) is None:
            raise InputError(f"`{name}` must be left out without `{needed}`, but is {given!r}")
    tables = [table for table in (source.interactions, source.items) if table is not None]
    names = None if source.images is None else _image_files(source.images)
    options = {k: v for k, v in asdict(source).items() if not isinstance(v, Path)}
    recipe = {
        "source": "table",
        "raw": contents(*(file for table in tables for file in _files(table))),
        "options": options,
        "images": source.images and contents_hash(source.images, names or ()),
    }
    with preparing(out, recipe) as working:
        if working is not None:
            with Database(working / SCRATCH, memory_gb) as database:
                notes = _load(database, source, working / SCRATCH)
                if source.images is not None:
                    notes += _locate_images(database, source.images, names or ())
                normalise(database, working, source.images, notes)
    return read_repairs(out)


def _files(table: Path) -> list[Path]:
    return parts(f"{str(table)!r}", table) if table.is_dir() else [table]


def _image_files(images: Path) -> list[str]:
    if not images.is_dir():
        raise InputError(f"`images` must be a folder, but is {str(images)!r}")
    return sorted(str(f.relative_to(images)) for f in images.rglob("*") if f.is_file())


def _load(database: Database, source: TableSource, scratch: Path) -> list[str]:
    """Make `raw_interactions` and `raw_items`; returns lines for the report."""

    def opened(path: Path) -> TextTable:
        return open_text_table(
            database, path, scratch, delimiter=source.delimiter, encoding=source.encoding
        )

    orders = _Columns(opened(source.interactions))
    user, item = orders.one("user", source.user), orders.one("item", source.item)
    moment = orders.several("time", source.time)
    if len({user, item, *moment}) < 2 + len(moment):
        names = map(orders.name, (user, item, *moment))
        raise InputError(
            f"`user`, `item` and `time` must be different columns of {str(source.interactions)!r}, "
            f"but are {', '.join(names)}"
        )
    columns = (
        f"{_present(user)} AS user_id, {_present(item)} AS item_id, "
        f"{_joined(moment, ' ')} AS time_text, {_spaced(user)} OR {_spaced(item)} AS spaced"
    )
    notes = []
    if source.items is None:
        content = _content(orders, source, _ORDER_TITLES)
        notes += [orders.description()]
        notes += orders.table.read(database, "read_interactions", f"{columns}, {content}")
    else:
        products = _Columns(opened(source.items))
        same = orders.name(item) if orders.name(item) in products.table.columns else None
        key = products.one("key", source.key or same)
        content = _content(products, source)
        notes += [orders.description(), products.description()]
        notes += orders.table.read(database, "read_interactions", columns)
        notes += products.table.read(database, "read_items", f"{_present(key)} AS id, {content}")
    user_id = _exact(database, "read_interactions", "user_id", orders.where([user]), notes)
    item_id = _exact(database, "read_interactions", "item_id", orders.where([item]), notes)
    if source.items is None:
        raw_items = (
            f"SELECT {item_id} AS item_id, arg_min(title, rowid) AS title, "
            "arg_min(image, rowid) AS image, min(rowid) AS row FROM read_interactions "
            "WHERE item_id IS NOT NULL GROUP BY 1"
        )
    else:
        key_id = _exact(database, "read_items", "id", products.where([key]), notes)
        raw_items = f"SELECT {key_id} AS item_id, title, image, rowid AS row FROM read_items"
    database.table("raw_items", raw_items)
    where = orders.where(moment)
    times = understand(database, where, source.date_format)
    database.table(
        "raw_interactions",
        f"SELECT {user_id} AS user_id, {item_id} AS item_id, {times.value} AS timestamp, "
        "CASE WHEN timestamp IS NULL THEN time_text END AS unreadable, spaced, rowid AS row "
        "FROM read_interactions",
    )
    database.rows("DROP TABLE read_interactions")
    notes += [f"times: {times.words}", *_check_times(database, times, where)]
    (spaced,) = database.row("SELECT count(*) FILTER (spaced) FROM raw_interactions")
    if spaced:
        notes.append(f"{counted(spaced, 'interaction')} with space around an id, now without")
    return notes


def _content(columns: _Columns, source: TableSource, titles: str | None = None) -> str:
    title = columns.several("title", source.title, titles)
    image = columns.several("image", source.image) if source.images is not None else []
    return f"{_joined(title, ', ')} AS title, {_joined(image, '/')} AS image"


class _Columns:
    """The chosen columns of a table, by name or guess."""

    def __init__(self, table: TextTable) -> None:
        self.table = table
        self._chosen: dict[str, tuple[list[int], bool]] = {}

    def name(self, column: int) -> str:
        return self.table.columns[column]

    def where(self, columns: Sequence[int]) -> str:
        """The name of columns in messages."""
        return f"{str(self.table.file)!r} column {', '.join(map(self.name, columns))!r}"

    def one(self, role: str, given: str | None) -> int:
        """The single column of ids of a role, as `several`."""
        (column,) = self.several(role, given, join=False)
        if found := self.table.nested.get(self.name(column)):
            raise InputError(
                f"{self.where([column])} must have texts or whole numbers for ids, but {found}"
            )
        return column

    def several(
        self, role: str, given: str | None, names: str | None = None, *, join: bool = True
    ) -> list[int]:
        """The columns of a role as given, else one of its usual names (or of `names`).

        Raises InputError if they are missing; only roles in `_WORDS` must be there.
        """
        if given is None:
            columns = self._guess(names or _GUESSES[role])
            if role in _WORDS and not columns:
                raise InputError(
                    f"{str(self.table.file)!r} must have a column of {_WORDS[role]}, but its "
                    f"columns are {self._listed()}; name it with --{role}"
                )
        elif given in self.table.columns or not join:
            columns = [self._index(role, given)]
        else:
            columns = [self._index(role, name.strip()) for name in given.split(",")]
        self._chosen[role] = columns, given is None
        return columns

    def description(self) -> str:
        """How the table was understood."""
        roles = ", ".join(
            f"{role} = {', '.join(map(self.name, columns))}" + (" (guessed)" if guessed else "")
            if columns
            else f"no {role}"
            for role, (columns, guessed) in self._chosen.items()
        )
        return f"{self.table.file.name}: {self.table.words}; {roles}"

    def _index(self, role: str, name: str) -> int:
        count = self.table.columns.count(name)
        if count == 1:
            return self.table.columns.index(name)
        if count > 1:
            raise InputError(
                f"{str(self.table.file)!r} must have one column {name!r}, but has {count}"
            )
        close = difflib.get_close_matches(name, self.table.columns, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(
            f"`{role}` must name a column of {str(self.table.file)!r}, but is {name!r} and the "
            f"columns are {self._listed()}{hint}"
        )

    def _guess(self, names: str) -> list[int]:
        plain = [_plain_name(name) for name in self.table.columns]
        for name in map(_plain_name, names.split()):
            if name in plain:
                return [self._index(name, self.table.columns[plain.index(name)])]
        return []

    def _listed(self) -> str:
        listed = ", ".join(name or "''" for name in self.table.columns)
        return listed if len(listed) <= 300 else f"{listed[:300]} …"


def _plain_name(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _present(column: int) -> str:
    """SQL of a text without surrounding space; null for words such as NULL."""
    text = f"trim(c{column})"
    # Not IN, which DuckDB 2.0 makes a join, and a join loses the order of the rows.
    return f"CASE WHEN regexp_full_match({text}, {quoted(_NOTHING)}) THEN NULL ELSE {text} END"


def _spaced(column: int) -> str:
    return f"coalesce(c{column} <> trim(c{column}), false)"


def _joined(columns: Sequence[int], between: str) -> str:
    """SQL of several texts joined, without missing ones."""
    if not columns:
        return "CAST(NULL AS VARCHAR)"
    if len(columns) == 1:
        return _present(columns[0])
    texts = ", ".join(_present(column) for column in columns)
    return f"nullif(concat_ws({quoted(between)}, {texts}), '')"


def _exact(database: Database, table: str, column: str, where: str, notes: list[str]) -> str:
    """SQL of a column's ids, undoing a conversion to floats."""
    whole = f"{column} LIKE '%.0' AND regexp_full_match({column}, '-?\\d+\\.0')"
    power = f"{column} LIKE '%+__' AND regexp_full_match({column}, '-?\\d([.,]\\d+)?[eE]\\+\\d\\d')"
    every, floats, most, example = database.row(
        f"SELECT count({column}), count(*) FILTER ({whole}), "
        f"max(abs(try_cast({column} AS DOUBLE))) FILTER ({whole}), "
        f"first({column}) FILTER ({power}) FROM {table}"
    )
    if example is not None:
        raise InputError(
            f"{where} must have ids as they are, but {example!r} has lost its last digits in a "
            "spreadsheet; write the column as text"
        )
    if not floats or floats < every:
        return column
    if most >= 2**53:
        raise InputError(
            f"{where} must have texts or integers for ids from {2**53} on, which floats merge"
        )
    notes.append(f"{where}: every id ends in .0, which is left away")
    return f"{column}[:-3]"


def _check_times(database: Database, times: Times, where: str) -> list[str]:
    """Drop rows with an unreadable time; returns lines for the report."""
    every, wrong, example, first, last = database.row(
        "SELECT count(timestamp) + count(unreadable), count(unreadable), first(unreadable) FILTER "
        "(unreadable IS NOT NULL), min(timestamp), max(timestamp) FROM raw_interactions"
    )
    if wrong > MOST_UNREADABLE * every:
        raise InputError(
            f"{where} must have times of one form, but {wrong:,} of {every:,} are not as "
            f"{times.words}, such as {example[:60]!r}; give --date-format or mend them"
        )
    lines = [f"from {times.shown(first)} to {times.shown(last)}"]
    if wrong:
        lines.append(
            f"{counted(wrong, 'interaction')} with an unreadable time left out, "
            f"such as {example[:60]!r}"
        )
        database.rows("DELETE FROM raw_interactions WHERE unreadable IS NOT NULL")
    if times.unit is not None:
        limit = int((time.time() + 86_400) * 1e9) // times.unit
        (future,) = database.row(f"SELECT count(*) FROM raw_interactions WHERE timestamp > {limit}")
        if future:
            lines.append(f"{counted(future, 'interaction')} in the future")
    return lines


def _locate_images(database: Database, images: Path, names: Sequence[str]) -> list[str]:
    """Give `raw_items` checked paths below `images`; returns lines for the report."""
    texts = database.rows("SELECT DISTINCT image FROM raw_items WHERE image IS NOT NULL")
    if texts:
        key, paths = "image", {text: _inside(images, text) for (text,) in texts}
    else:
        key, paths = "item_id", {Path(name).stem: _inside(images, name) for name in reversed(names)}
    database.fill("located", key=list(paths), path=list(paths.values()))
    database.table(
        "raw_items",
        "SELECT item_id, title, path AS source, 'images/' || path AS image, row "
        f"FROM raw_items LEFT JOIN located ON raw_items.{key} = located.key",
    )
    if texts:
        return []
    (found,) = database.row("SELECT count(image) FROM raw_items")
    if not found:
        raise InputError(
            f"`images` must have files named after items, or the items a column of images "
            f"(--image), but of {counted(len(names), 'file')} in {str(images)!r} none is"
        )
    return [f"{counted(found, 'item')} with an image named after the item"]


def _inside(images: Path, image: str) -> str:
    """The path below `images` that a text means, also with `\\` or the folder's name."""
    path = image if "\0" in image or (images / image).is_file() else image.replace("\\", "/")
    own = f"{images.resolve().name}/"
    if path.startswith(own) and not (images / own).exists():
        path = path.removeprefix(own)
    check_inside(f"images must lie in {str(images)!r}", images, path)
    return path
