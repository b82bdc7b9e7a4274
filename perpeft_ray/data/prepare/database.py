"""DuckDB for relational work on tables larger than memory."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from perpeft_ray.errors import InputError

_UNREADABLE = (
    duckdb.InvalidInputException,
    duckdb.ConversionException,
    duckdb.IOException,
    duckdb.OutOfRangeException,
)

_log = logging.getLogger(__name__)


class MemoryBoundError(InputError):
    """`memory_gb` is too small; rerun with more memory to resume."""


class Database:
    """A DuckDB file of named tables, each of which exists whole or not at all.

    `memory_gb` limits DuckDB's memory; the rest is in the file and beside it. If the path has
    `?` or `\\`, which DuckDB cannot open, it is a temporary one.
    """

    def __init__(self, file: Path, memory_gb: float) -> None:
        self._links: tempfile.TemporaryDirectory[str] | None = None
        self._linked: dict[str, Path] = {}
        if _special(file.resolve(), "?\\"):  # also through a link
            file = self._own_folder() / file.name
        if not file.exists():
            # A kill while DuckDB makes a file leaves an unreadable one; later kills do not.
            new = file.with_suffix(".new")
            new.unlink(missing_ok=True)
            duckdb.connect(str(new.absolute())).close()
            new.rename(file)
        self._memory_gb = memory_gb
        self._connection = duckdb.connect(
            str(file.absolute()),
            config={
                "memory_limit": f"{round(memory_gb * 1000)}MB",
                "temp_directory": str(file.absolute().with_suffix(".spill")),
            },
        )
        self._connection.execute("SET TimeZone = 'UTC'")
        # The bar goes to standard output if Python seems interactive.
        self._connection.execute("SET enable_progress_bar = false")

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        if self._links is not None:
            self._links.cleanup()

    def plain_path(self, path: Path) -> Path:
        """The path of a file or folder, or of a link to it if DuckDB would read it as a pattern.

        A link keeps the endings `.jsonl` and `.gz`.
        """
        path = path.absolute()
        if not _special(path, "?\\*["):
            return path
        endings = "".join(ending for ending in path.suffixes if ending in (".jsonl", ".gz"))
        link = self._own_folder() / f"{len(self._linked)}{endings}"
        link.symlink_to(path)
        self._linked[str(link)] = path
        return link

    def _own_folder(self) -> Path:
        if self._links is None:
            self._links = tempfile.TemporaryDirectory(prefix="perpeft-")
        return Path(self._links.name)

    def has(self, name: str) -> bool:
        """Whether a table exists."""
        query = "SELECT count(*) FROM duckdb_tables() WHERE table_name = ?"
        return bool(self.row(query, [name])[0])

    def table(self, name: str, query: str, values: Sequence[Any] = ()) -> int:
        """Number of rows of a table; makes it by the query unless it exists."""
        if not self.has(name):
            _log.info("making table %s", name)
            started = time.perf_counter()
            self._execute(f"CREATE TABLE {name} AS {query}", values)
            seconds = time.perf_counter() - started
            _log.info("table %s: %s rows in %.1f s", name, f"{self.count(name):,}", seconds)
        return self.count(name)

    def load(self, name: str, batches: Iterable[pa.RecordBatch]) -> int:
        """Rows of a table; makes it from batches, with a column `row`, unless it exists."""
        if not self.has(name):
            started, rows = time.perf_counter(), 0
            self._execute("BEGIN")
            try:
                for batch in batches:
                    numbers = pa.array(range(rows, rows + len(batch)), pa.int64())
                    incoming = pa.Table.from_batches([batch]).append_column("row", numbers)
                    self._connection.register("incoming", incoming)
                    new = "INSERT INTO {}" if self.has(name) else "CREATE TABLE {} AS"
                    self._execute(f"{new.format(name)} SELECT * FROM incoming")
                    self._connection.unregister("incoming")
                    rows += len(batch)
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._execute("COMMIT")
            _log.info(
                "table %s: %s rows in %.1f s", name, f"{rows:,}", time.perf_counter() - started
            )
        return self.count(name)

    def replace(self, name: str, query: str) -> int:
        """Number of rows of a table that the query replaces, possibly from its old rows."""
        self._execute(f"CREATE OR REPLACE TABLE {name} AS {query}")
        return self.count(name)

    def delete(self, name: str, condition: str) -> None:
        """Remove the rows of a table for which a condition holds."""
        self._execute(f"DELETE FROM {name} WHERE {condition}")

    def drop(self, *names: str) -> None:
        """Remove tables if they exist."""
        for name in names:
            self._execute(f"DROP TABLE IF EXISTS {name}")

    def fill(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Make or replace a table of texts from rows in memory."""
        values = [[row[at] for row in rows] for at in range(len(columns))]
        texts = pa.table([pa.array(column, pa.string()) for column in values], list(columns))
        self._connection.register("rows_in_memory", texts)
        self.replace(name, "SELECT * FROM rows_in_memory")
        self._connection.unregister("rows_in_memory")

    def count(self, name: str) -> int:
        """Rows of a table."""
        return int(self.row(f"SELECT count(*) FROM {name}")[0])

    def row(self, query: str, values: Sequence[Any] = ()) -> tuple[Any, ...]:
        """The one row of a query's result."""
        (found,) = self.rows(query, values)
        return found

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query's result."""
        return self._execute(query, values).fetchall()

    def write_parquet(self, query: str, file: Path, *, row_group: int = 122_880) -> None:
        """Write the rows of a query, in its order, to a file that appears whole."""
        new = self.plain_path(file.parent) / ".parquet.new"
        self._execute(
            f"COPY ({query}) TO {quoted(new)} "
            f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {row_group})"
        )
        new.replace(file)

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Turn DuckDB's errors for unreadable files into an InputError."""
        try:
            yield
        except _UNREADABLE as error:
            reason = str(error).partition("\n")[0]
            for link, path in self._linked.items():
                reason = reason.replace(link, str(path))
            raise InputError(f"{what} must have readable files, but {reason}") from error

    def _execute(self, query: str, values: Sequence[Any] = ()) -> duckdb.DuckDBPyConnection:
        try:
            return self._connection.execute(query, list(values))
        except duckdb.OutOfMemoryException as error:
            raise MemoryBoundError(
                f"`memory_gb` must be more for these data, but is {self._memory_gb:g}"
            ) from error


def _special(path: Path, characters: str) -> bool:
    return bool(set(characters) & set(str(path)))


def quoted(text: str | Path) -> str:
    """A text as an SQL literal."""
    return "'" + str(text).replace("'", "''") + "'"


def clean_text(column: str) -> str:
    """SQL for a text column with single spaces between words, null if nothing is left."""
    return f"nullif(trim(regexp_replace({column}, '[\\s\\p{{Z}}]+', ' ', 'g')), '')"
