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
from perpeft_ray.screen import counted

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
    """Temporary tables in DuckDB: `memory_gb` in memory, the rest in the folder `spill`."""

    def __init__(self, spill: Path, memory_gb: float) -> None:
        self._memory_gb = memory_gb
        self._links = tempfile.TemporaryDirectory(prefix="perpeft-")
        self._linked: dict[str, Path] = {}
        self._connection = duckdb.connect(
            config={
                "memory_limit": f"{round(memory_gb * 1000)}MB",
                "temp_directory": str(spill.absolute()),
            }
        )
        self._connection.execute("SET TimeZone = 'UTC'")
        # The bar goes to standard output if Python seems interactive.
        self._connection.execute("SET enable_progress_bar = false")

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._links.cleanup()

    def plain_path(self, path: Path) -> Path:
        """The path of a file or folder, or of a link to it if DuckDB would read it as a pattern.

        A link keeps the endings `.jsonl` and `.gz`.
        """
        path = path.absolute()
        if not set("?\\*[") & set(str(path)):
            return path
        endings = "".join(ending for ending in path.suffixes if ending in (".jsonl", ".gz"))
        link = Path(self._links.name, f"{len(self._linked)}{endings}")
        link.symlink_to(path)
        self._linked[str(link)] = path
        return link

    def table(self, name: str, query: str) -> int:
        """Make or replace a table, possibly from its old rows; returns its number of rows."""
        self._execute(f"CREATE OR REPLACE TABLE {name} AS {query}")
        return self.count(name)

    def logged_table(self, name: str, query: str) -> int:
        """As `table`, for one that may take minutes."""
        _log.info("making table %s", name)
        started = time.perf_counter()
        rows = self.table(name, query)
        seconds = time.perf_counter() - started
        _log.info("table %s: %s in %.1f s", name, counted(rows, "row"), seconds)
        return rows

    def load(self, name: str, batches: Iterable[pa.RecordBatch]) -> int:
        """Make a table from batches, at least one, with a column `row`; returns its rows."""
        rows, start = 0, f"CREATE TABLE {name} AS"
        for batch in batches:
            numbers = pa.array(range(rows, rows + len(batch)), pa.int64())
            incoming = pa.Table.from_batches([batch]).append_column("row", numbers)
            self._connection.register("incoming", incoming)
            self._execute(f"{start} SELECT * FROM incoming")
            self._connection.unregister("incoming")
            rows, start = rows + len(batch), f"INSERT INTO {name}"
        return rows

    def fill(self, name: str, **columns: Sequence[str | None]) -> None:
        """Make or replace a table from columns of text in memory."""
        arrays = {column: pa.array(texts, pa.string()) for column, texts in columns.items()}
        self._connection.register("incoming", pa.table(arrays))
        self.table(name, "SELECT * FROM incoming")
        self._connection.unregister("incoming")

    def count(self, name: str) -> int:
        """Rows of a table."""
        return int(self.row(f"SELECT count(*) FROM {name}")[0])

    def row(self, query: str) -> tuple[Any, ...]:
        """The one row of a query's result."""
        (found,) = self.rows(query)
        return found

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """All rows of a query's result."""
        return self._execute(query).fetchall()

    def write_parquet(self, query: str, file: Path, *, row_group: int = 122_880) -> None:
        """Write the rows of a query, in its order, to a file that appears whole.

        One process at a time: a rerun overwrites the unfinished file that a kill leaves.
        """
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

    def _execute(self, query: str) -> duckdb.DuckDBPyConnection:
        try:
            return self._connection.execute(query)
        except duckdb.OutOfMemoryException as error:
            raise MemoryBoundError(
                f"`memory_gb` must be more for these data, but is {self._memory_gb:g}"
            ) from error


def quoted(text: str | Path) -> str:
    """A text as an SQL literal."""
    return "'" + str(text).replace("'", "''") + "'"


CLEAN_TITLE = r"nullif(trim(regexp_replace(title, '[\s\p{Z}]+', ' ', 'g')), '')"
"""SQL for the column title with single spaces between words, null if nothing is left."""
