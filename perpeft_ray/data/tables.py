"""Reads users' Parquet tables by exact path, with exact ids and times.

Training, `prepare` and `recommend --users` all read through here, so that they accept the same. A
path is never a pattern, and folder names add no columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from perpeft_ray.errors import InputError

Kind = Literal["id", "time", "text"]
"""Kind of a column. `id`: text or whole numbers, read as string. `time`: whole numbers, clock times
or ISO dates, read as int64. `text`: text or null, read as string."""

INTERACTION_COLUMNS: Mapping[str, Kind] = {"user_id": "id", "item_id": "id", "timestamp": "time"}

_WORDS = {
    "id": "texts or whole numbers",
    "time": "whole numbers, clock times or ISO dates such as 2024-01-31T23:59:59.123",
    "text": "texts",
}
_EXACT = {"halffloat": 2**11, "float": 2**24, "double": 2**53}
"""Below it a float of this type represents every whole number exactly."""
_UNITS = ("s", "ms", "us", "ns")
_DIGITS = "^-?[0-9]+$"
_ZONE = "[0-9](Z|[+-][0-9]{2}(:?[0-9]{2})?)$"
_DATE_ALONE = "^-?[0-9]{4}-[0-9]{2}-[0-9]{2}$"


@dataclass(frozen=True)
class ParquetTable:
    """Some columns of a Parquet file, or of a folder of its parts (`open_table`)."""

    where: str
    """The table's name in messages."""
    files: tuple[Path, ...]
    """The file, or its parts ordered by number."""
    columns: Mapping[str, Kind]
    unit: str
    """`s`, `ms`, `us` or `ns`: the finest of the clock times of all parts."""

    @property
    def schema(self) -> pa.Schema:
        """string for ids and texts, int64 for times."""
        return pa.schema([(name, _type(kind)) for name, kind in self.columns.items()])

    def batches(self, *, nulls: bool) -> Iterator[pa.RecordBatch]:
        """The rows in order, in batches of `schema`; the first batch is empty, so there is one.

        Clock times and ISO dates count from 1970 (UTC without a zone): dates in seconds, clock
        times in `unit`, ISO texts in nanoseconds. `nulls`: whether ids and times may be missing
        (NaN counts as missing). Raises InputError with column, row and value for other forms, and
        for float ids that are too large to be exact.
        """
        yield pa.RecordBatch.from_pylist([], schema=self.schema)
        columns = {
            name: _Column(self.where, name, kind, self.unit) for name, kind in self.columns.items()
        }
        for file in self.files:
            with readable(_part(self.where, self.files, file)), pq.ParquetFile(file) as parquet:
                names = [name for name in columns if name in parquet.schema_arrow.names]
                for batch in parquet.iter_batches(columns=names):
                    missing = pa.nulls(len(batch))
                    arrays = [
                        column.converted(batch[name] if name in names else missing, nulls=nulls)
                        for name, column in columns.items()
                    ]
                    yield pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def read(self) -> pa.Table:
        """All rows, without missing ids or times. Raises InputError as `batches` does."""
        return pa.Table.from_batches(self.batches(nulls=False), self.schema)


def open_table(
    where: str, path: Path, columns: Mapping[str, Kind], *, optional: tuple[str, ...] = ()
) -> ParquetTable:
    """Open a Parquet file, or a folder of parts as Spark, Dask and DuckDB write them.

    Skips hidden files, `_SUCCESS` and checksums; orders parts by the numbers in their names.
    Missing `optional` columns are null. Raises InputError for a missing or unreadable file, other
    files or folders among the parts, columns that are missing, doubled or of another type, and a
    table without rows.
    """
    files = parts(where, path.absolute())  # Arrow expands a leading `s3:` or `~`
    rows, units = 0, {"s"}
    forms: dict[str, Path] = {}
    for file in files:
        named = _part(where, files, file)
        with readable(named), pq.ParquetFile(file) as parquet:
            rows += parquet.metadata.num_rows
            schema = parquet.schema_arrow
        for name, kind in columns.items():
            if name in optional and name not in schema.names:
                continue
            if schema.names.count(name) != 1:
                has = ", ".join(schema.names) or "none"
                raise InputError(
                    f"{named} must have one column `{name}`, but its columns are {has}"
                )
            form = _form(schema.field(name).type)
            if form not in _FORMS[kind]:
                raise InputError(
                    f"{named} column `{name}` must have {_WORDS[kind]}, "
                    f"but is of type {schema.field(name).type}"
                )
            if kind == "time" and form in ("whole", "float", "clock", "text"):
                forms.setdefault("whole" if form == "float" else form, file)
                if form == "clock":
                    units.add(_unit(schema.field(name).type))
    if len(forms) > 1:
        raise InputError(
            f"{where} must have times of one form in all parts, but has "
            + " and ".join(f"{form} times in {file.name}" for form, file in forms.items())
        )
    if not rows:
        raise InputError(f"{where} must have at least one row, but is empty")
    return ParquetTable(where, tuple(files), columns, max(units, key=_UNITS.index))


def _type(kind: Kind) -> pa.DataType:
    return pa.int64() if kind == "time" else pa.string()


def parts(where: str, path: Path) -> list[Path]:
    """A file, or the Parquet files of a folder in the order of their numbers."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(
            f"{where} must be a Parquet file or a folder of its parts, but {str(path)!r} is missing"
        )
    found = [entry for entry in path.iterdir() if not entry.name.startswith((".", "_"))]
    for entry in sorted(found):
        if entry.is_dir() or entry.suffix != ".parquet":
            kind = "folder" if entry.is_dir() else "file"
            raise InputError(
                f"{where} must have only files that end in .parquet, "
                f"but has the {kind} {entry.name!r}"
            )
    if (path / "_delta_log").is_dir():
        raise InputError(
            f"{where} must be plain Parquet, but is a Delta table, whose files may be outdated"
        )
    if not found:
        raise InputError(f"{where} must have files that end in .parquet, but has none")
    return sorted(found, key=_in_numbers)


def _in_numbers(file: Path) -> list[tuple[int, str]]:
    """Sort key that puts `part.10` after `part.9`."""
    pieces = re.split("([0-9]+)", file.name)
    return [(int(piece), "") if at % 2 else (-1, piece) for at, piece in enumerate(pieces)]


def _part(where: str, files: Sequence[Path], file: Path) -> str:
    return where if len(files) == 1 else f"{where} part {file.name}"


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Turn Arrow's errors for an unreadable file into an InputError that names it, `where`."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "is missing" if missing else str(error).partition("\n")[0]
        raise InputError(f"{where} must be a readable table, but {reason}") from error


_FORMS = {
    "id": ("text", "whole", "float", "decimal", "null"),
    "time": ("text", "whole", "float", "decimal", "clock", "null"),
    "text": ("text", "float", "null"),  # floats where all are NaN
}


def _form(kind: pa.DataType) -> str:
    types = pa.types
    if types.is_dictionary(kind):  # the written form of a pandas categorical
        return _form(kind.value_type)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "text"
    if types.is_binary(kind) or types.is_large_binary(kind):  # text of old writers
        return "text"
    if types.is_integer(kind):
        return "whole"
    if types.is_floating(kind):
        return "float"
    if types.is_decimal(kind):
        return "decimal"
    if types.is_timestamp(kind) or types.is_date(kind):
        return "clock"
    return "null" if types.is_null(kind) else str(kind)


def _unit(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return {"date32[day]": "s", "date64[ms]": "ms"}.get(str(kind)) or kind.unit


class _Column:
    """Converts a column, batch by batch, to ids, times or text."""

    def __init__(self, where: str, name: str, kind: Kind, unit: str) -> None:
        self._where, self._name, self._kind, self._unit = where, name, kind, unit
        self._done = 0
        self._numbers: bool | None = None
        """Whether text times are whole numbers, not dates: the first one decides."""

    def converted(self, values: pa.Array, *, nulls: bool) -> pa.Array:
        """The next rows as string, or int64 for times; nulls stay null."""
        found = self._converted(values)
        if found.null_count and self._kind != "text" and not nulls:
            row = self._done + pc.index(pc.is_null(found), True).as_py()
            raise InputError(
                f"{self._where} column `{self._name}` must not be null, but row {row} is"
            )
        self._done += len(values)
        return found

    def _converted(self, values: pa.Array) -> pa.Array:
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        form = _form(values.type)
        if form == "null":
            return values.cast(_type(self._kind))
        exact = _EXACT.get(str(values.type), 0)
        if form == "float":
            values = values.cast(pa.float64())
            values = pc.if_else(pc.is_nan(values), None, values)
            if self._kind == "text" and values.null_count < len(values):
                self._refuse(values, pc.is_valid(values), "must have texts")
        if form == "text":
            values = self._cast(values, pa.string(), "must have texts in UTF-8")
            values.validate(full=True)
            return self._text_times(values) if self._kind == "time" else values
        if form == "clock":
            target = pa.timestamp(self._unit, getattr(values.type, "tz", None))
            rule = f"must be in the range of `{self._unit}` times"
            return self._cast(values, target, rule).cast(pa.int64())
        rule = f"must have {_WORDS[self._kind]}"
        if self._kind == "time":
            return self._cast(values, pa.int64(), rule)
        if form == "float":
            merged = f"must have texts or integers for ids from {exact} on, which floats merge"
            self._refuse(values, pc.greater_equal(pc.abs(values), float(exact)), merged)
            values = self._cast(values, pa.int64(), rule)
        elif form == "decimal":
            values = self._cast(values, pa.decimal128(38, 0), rule)
        return values.cast(pa.string())

    def _text_times(self, values: pa.Array) -> pa.Array:
        numbers = pc.match_substring_regex(values, _DIGITS)
        if self._numbers is None and values.null_count < len(values):
            self._numbers = numbers.drop_null()[0].as_py()
        if self._numbers:
            rule = "must have numbers alone where the first is one"
            self._refuse(values, pc.invert(numbers), rule)
            return self._cast(values, pa.int64(), "must have whole numbers of 64 bits")
        rule = f"must have {_WORDS['time']}"
        zoned = pc.and_(
            pc.match_substring_regex(values, _ZONE),
            pc.invert(pc.match_substring_regex(values, _DATE_ALONE)),
        )
        utc, none = pa.timestamp("ns", "UTC"), pa.scalar(None, pa.string())
        with_zone = self._cast(pc.if_else(zoned, values, none), utc, rule)
        without = self._cast(pc.if_else(zoned, none, values), pa.timestamp("ns"), rule)
        return pc.coalesce(with_zone.cast(pa.int64()), without.cast(pa.int64()))

    def _cast(self, values: pa.Array, target: pa.DataType, rule: str) -> pa.Array:
        try:
            return values.cast(target)
        except pa.ArrowInvalid:
            for row, value in enumerate(values):
                try:
                    pa.array([value.as_py()], values.type).cast(target)
                except pa.ArrowInvalid:
                    self._refuse_value(row, value.as_py(), rule)
            raise

    def _refuse(self, values: pa.Array, wrong: pa.Array, rule: str) -> None:
        row = pc.index(wrong, True).as_py()
        if row >= 0:
            self._refuse_value(row, values[row].as_py(), rule)

    def _refuse_value(self, row: int, value: object, rule: str) -> None:
        raise InputError(
            f"{self._where} column `{self._name}` {rule}, but row {self._done + row} has "
            f"{str(value)[:80]!r}"
        ) from None
