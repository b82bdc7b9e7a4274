"""Reads CSV, TSV, JSON lines and Parquet as text columns, by DuckDB within its memory limit."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast

from perpeft_ray.data.prepare.database import Database, quoted
from perpeft_ray.data.tables import parts
from perpeft_ray.errors import InputError
from perpeft_ray.screen import counted

MOST_REJECTED = 0.1
"""Largest share of lines that are not rows; more mean that the form is another."""

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_SAMPLE_BYTES = 1 << 20
_SAMPLE_ROWS = 200
_CHUNK = 1 << 22
_PART = "part (perpeft)"
"""A column that no table has: the file of a row."""
_NOT_IN_1252 = b"\x81\x8d\x8f\x90\x9d"
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_REJECTED = """
    SELECT CASE WHEN bool_or(error_type = 'UNQUOTED VALUE') THEN 'quotes that do not match'
    ELSE lower(first(error_type)::VARCHAR) END AS reason, line, first(csv_line) AS text
    FROM rejected GROUP BY line"""
_CONTROLS = "[\0-\x08\x0b-\x1f\x7f-\x9f]"
"""Pattern of characters that no header has, besides tab and line end."""
_NESTED = re.compile(r"^(STRUCT|MAP|UNION)\b|\]$")
"""DuckDB's types of lists and objects."""
_GZIP = b"\x1f\x8b"
_OTHER_FILES = {
    b"PK\x03\x04": "a zip archive or an Excel workbook: unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel workbook: save the sheet as CSV",
    b"\x28\xb5\x2f\xfd": "a zstd archive: unpack it",
    b"BZh": "a bzip2 archive: unpack it",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
}


@dataclass(frozen=True)
class TextTable:
    """An opened table with text columns, not yet read (`open_text_table`)."""

    file: Path
    words: str
    """How the file was understood."""
    columns: tuple[str, ...]
    """Names in the file, possibly repeated; SQL names them c0, c1, …"""
    source: str
    """SQL after FROM."""
    bad_lines: str | None
    """SQL of (reason, line, text) of the lines that are not rows, after reading `source`; None if
    there cannot be any."""
    nested: Mapping[str, str] = field(default_factory=dict)
    """Columns with lists or objects, and what shows it."""

    def read(self, database: Database, name: str, columns: str) -> list[str]:
        """Make a table of SQL columns over c0, c1, …; returns report lines about broken lines.

        Raises InputError without any row, or if more than 1 in 10 lines are broken.
        """
        for table in ("rejected", "rejected_scan"):
            database.rows(f"DROP TABLE IF EXISTS {table}")
        with database.reading(f"{str(self.file)!r}"):
            rows = database.table(name, f"SELECT {columns} FROM {self.source}")
        reasons, lost = [], 0
        for reason, lines, line, text in self._rejected(database):
            lost += lines
            reasons.append(
                f"{counted(lines, 'line')} of {self.file.name} left out: {reason} "
                f"(line {line}: {text!r})"
            )
        if lost > MOST_REJECTED * (rows + lost):
            raise InputError(
                f"{str(self.file)!r} ({self.words}) must have rows like its header, but of "
                f"{counted(rows + lost, 'line')} " + "; ".join(reasons)
            )
        if not rows:
            raise InputError(f"{str(self.file)!r} must have at least one row, but has none")
        return reasons

    def _rejected(self, database: Database) -> list[tuple[str, int, int, str]]:
        """By reason: number of lines, also those inside quotes, and the first one's text."""
        if self.bad_lines is None:
            return []
        lines = "length(text) - length(replace(text, chr(10), '')) + 1"
        return database.rows(
            f"SELECT reason, CAST(sum({lines}) AS BIGINT), min(line), "
            "arg_min(text[:60], line) FROM "
            f"(SELECT reason, line, rtrim(text, chr(10)) AS text FROM ({self.bad_lines})) "
            "GROUP BY reason ORDER BY min(line)"
        )


def open_text_table(
    database: Database,
    path: Path,
    scratch: Path,
    *,
    delimiter: str | None = None,
    encoding: str | None = None,
) -> TextTable:
    """Find out a file's kind and columns from its beginning.

    CSV is separated by commas, semicolons, tabs or bars, with double quotes, possibly compressed by
    gzip; its encoding is UTF-8, UTF-16 or Windows-1252, whichever fits all bytes. If it is not
    plain UTF-8, the folder `scratch` gets a UTF-8 copy. Raises InputError for a file that is
    missing, empty or of another kind.
    """
    if path.is_dir() or _start(path) == b"PAR1":
        return _parquet(database, path)
    if not path.is_file():
        raise InputError(f"{str(path)!r} must be a table, but is missing")
    for mark, words in _OTHER_FILES.items():
        if _start(path).startswith(mark):
            raise InputError(
                f"{str(path)!r} must be CSV, TSV, JSON lines or Parquet, but is {words}"
            )
    try:
        plain, words = _plain(path, scratch, encoding)
        with _opened(plain) as stream:
            sample = stream.read(_SAMPLE_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{str(path)!r} must be a readable file, but {error}") from error
    text = sample.decode("utf-8", "replace").removeprefix("\ufeff")
    if not text.strip():
        raise InputError(f"{str(path)!r} must have a header and rows, but is empty")
    file = quoted(database.plain_path(plain))
    if _start(plain).startswith(_GZIP):
        file += ", compression='gzip'"
    if text.lstrip()[0] in "{[":
        return _json_lines(database, path, words, text, file)
    return _csv(path, words, text, file, delimiter)


def _csv(path: Path, encoding: str, text: str, file: str, delimiter: str | None) -> TextTable:
    """The CSV in `file`, which begins with `text`."""
    skipped = 0
    if mark := re.match(r"sep=(.)\r?\n", text):  # a line that Excel writes
        delimiter, text, skipped = mark[1], text[mark.end() :], 1
    escape = "\\" if re.search(r'\\"[^,;|\t\r\n]', text) and '""' not in text else '"'
    marks = [delimiter] if delimiter else list(_DELIMITERS)
    samples = {mark: _records(text, mark, escape) for mark in marks}

    def fits(mark: str) -> tuple[float, int]:
        header, *rows = samples[mark][0]
        width = len(header)
        same = sum(len(row) == width for row in rows)
        return (width > 1) * (same + 1) / (len(rows) + 1), width

    best = max(samples, key=fits)
    (header, *rows), lines = samples[best]
    if re.search(_CONTROLS, "".join(header)):
        raise InputError(f"{str(path)!r} must be text with a header, but begins with other bytes")
    if rows and all(len(row) == len(header) + 1 and not row[-1] for row in rows):
        header = [*header, ""]  # every row ends with a separator
    columns = ", ".join(f"'c{at}': 'VARCHAR'" for at in range(len(header)))
    source = (
        f"read_csv({file}, delim={quoted(best)}, quote='\"', escape={quoted(escape)}, "
        f"header=false, skip={skipped + lines}, columns={{{columns}}}, auto_detect=false, "
        "strict_mode=true, store_rejects=true, rejects_table='rejected', "
        "rejects_scan='rejected_scan')"
    )
    words = f"CSV in {encoding}, separated by {_DELIMITERS.get(best, best)}"
    return TextTable(path, words, tuple(name.strip() for name in header), source, _REJECTED)


def _records(text: str, delimiter: str, escape: str) -> tuple[list[list[str]], int]:
    """The first non-empty records, and the number of lines to the end of the first."""
    doubled = escape == '"'
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        doublequote=doubled,
        escapechar=None if doubled else escape,
    )
    records: list[list[str]] = []
    lines = 0
    try:
        for record in islice(reader, _SAMPLE_ROWS):
            if record:
                records.append(record)
                lines = lines or reader.line_num
    except csv.Error:  # a field too long for Python, but not for DuckDB
        pass
    if len(text) >= _SAMPLE_BYTES // 2 and len(records) > 1:
        records.pop()  # it may be truncated
    return records or [[text[:80]]], lines


def _json_lines(database: Database, path: Path, encoding: str, text: str, file: str) -> TextTable:
    if text.lstrip()[0] == "[":
        raise InputError(f"{str(path)!r} must have a JSON object in each line, but is a JSON array")
    lines = (
        f"(SELECT line, row_number() OVER () AS number FROM read_csv({file}, delim='', quote='', "
        "escape='', header=false, columns={'line': 'VARCHAR'}, auto_detect=false, "
        "max_line_size=16000000) WHERE trim(line) <> '')"
    )
    # AND would evaluate both sides, and the type of a line that is no JSON is an error.
    object_ = "CASE WHEN json_valid(line) THEN json_type(line) = 'OBJECT' ELSE false END"
    with database.reading(f"{str(path)!r}"):
        keys = database.rows(
            f"SELECT unnest(json_keys(line)) AS key FROM (FROM {lines} LIMIT 1000) WHERE {object_}"
        )
    columns = tuple(dict.fromkeys(key for (key,) in keys))
    if not columns:
        raise InputError(f"{str(path)!r} must have a JSON object in each line, but has none")
    values = [f"line, {quoted('$.' + json.dumps(name, ensure_ascii=False))}" for name in columns]
    fields = ", ".join(f"json_extract_string({value}) AS c{at}" for at, value in enumerate(values))
    nested = ", ".join(
        f"any_value(json_extract({value})[:60]) FILTER (json_type({value}) IN ('ARRAY', 'OBJECT'))"
        for value in values
    )
    found = database.row(f"SELECT {nested} FROM (FROM {lines} LIMIT 1000) WHERE {object_}")
    has = {name: f"has {text}" for name, text in zip(columns, found, strict=True) if text}
    source = f"(SELECT {fields} FROM {lines} WHERE {object_})"
    bad = (
        "SELECT 'no JSON object' AS reason, number AS line, line AS text "
        f"FROM {lines} WHERE NOT {object_}"
    )
    return TextTable(path, f"JSON lines in {encoding}", columns, source, bad, has)


def _parquet(database: Database, path: Path) -> TextTable:
    files = parts(f"{str(path)!r}", path)
    listed = ", ".join(quoted(database.plain_path(file)) for file in files)
    options, order = "union_by_name=true, hive_partitioning=false", ""
    if len(files) > 1:  # DuckDB 2.0 reads parts side by side, and may swap them
        options += f", filename='{_PART}', file_row_number=true"
        order = f' ORDER BY list_position([{listed}], "{_PART}"), file_row_number'
    source = f"read_parquet([{listed}], {options})"
    with database.reading(f"{str(path)!r}"):
        types = {row[0]: row[1] for row in database.rows(f"DESCRIBE FROM {source}")}
    names = [name for name in types if not order or name not in (_PART, "file_row_number")]
    nested = {name: f"is of type {types[name]}" for name in names if _NESTED.search(types[name])}
    fields = ", ".join(
        f'CAST("{name.replace(chr(34), 2 * chr(34))}" AS VARCHAR) AS c{at}'
        for at, name in enumerate(names)
    )
    source = f"(SELECT {fields} FROM {source}{order})"
    return TextTable(path, "Parquet", tuple(names), source, None, nested)


def _start(path: Path) -> bytes:
    """The first four bytes of a file; none if it is missing."""
    if not path.is_file():
        return b""
    with path.open("rb") as stream:
        return stream.read(4)


def _opened(path: Path) -> BinaryIO:
    opened = gzip.open if _start(path).startswith(_GZIP) else open
    return cast(BinaryIO, opened(path, "rb"))


def _plain(path: Path, scratch: Path, encoding: str | None) -> tuple[Path, str]:
    """The file, or its UTF-8 copy with one kind of line end; and the name of its encoding."""
    encoding = encoding or _encoding(path)
    if encoding == "utf-8":
        return path, "UTF-8"
    name = encoding.removesuffix("*")
    errors = "surrogateescape" if name == "utf-8" else "strict"  # DuckDB rejects such lines
    copy = scratch / f"{path.name}.utf-8"
    try:
        with (
            _opened(path) as stream,
            io.TextIOWrapper(stream, name, errors, newline=None) as text,
            copy.open("w", encoding="utf-8", errors=errors, newline="") as out,
        ):
            shutil.copyfileobj(text, out, _CHUNK)
    except LookupError as error:
        raise InputError(f"`encoding` must be one that Python knows, but: {error}") from error
    except UnicodeError as error:
        raise InputError(
            f"{str(path)!r} must be text in {name}, but {error}; give --encoding"
        ) from error
    return copy, {"utf-8-sig": "UTF-8", "utf-8": "UTF-8", "utf-16": "UTF-16"}.get(
        name, name.replace("cp1252", "windows-1252")
    )


def _encoding(path: Path) -> str:
    """The encoding that fits the bytes; `utf-8` if no copy is needed, else `utf-8*`."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    good = bad = crlf = lf = cr = 0
    only_latin_1 = False
    with _opened(path) as stream:
        head = stream.read(4096)
        for mark, name in _MARKS.items():
            if head.startswith(mark):
                return name
        zeros = [head[at::2].count(0) for at in (0, 1)]
        if max(zeros) > len(head) // 5:
            return "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
        chunk = head
        while chunk:
            crlf += chunk.count(b"\r\n")
            lf += chunk.count(b"\n")
            cr += chunk.count(b"\r")
            if not chunk.isascii():
                text = decoder.decode(chunk)
                escaped = len(re.findall("[\udc80-\udcff]", text))
                bad += escaped
                good += len(re.findall("[^\x00-\x7f]", text)) - escaped
                only_latin_1 |= any(byte in chunk for byte in _NOT_IN_1252)
            chunk = stream.read(_CHUNK)
    if bad > good:
        return "latin-1" if only_latin_1 else "cp1252"
    return "utf-8" if crlf in (0, lf) and cr == crlf else "utf-8*"
