"""Shared by benchmarks: medians of repeats, fresh processes, and the table.

Every script of `benchmarks/` writes its rows into `results/bench/bench.parquet` and renders the
whole table again as `results/bench/bench.md`; rows of other scripts stay.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from perpeft_ray.store.description import git_revision, machine
from perpeft_ray.store.files import whole_file

FOLDER = Path("results/bench")
COLUMNS = [
    "benchmark",
    "case",
    "metric",
    "value",
    "unit",
    "reference",
    "ratio",
    "machine",
    "revision",
]

_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""Environment that a study's runtime sets for trials' processes."""


@dataclass(frozen=True)
class Row:
    """One measured figure."""

    benchmark: str
    case: str
    metric: str
    value: float
    unit: str
    reference: float | None = None
    """The value to compare with: the authors' program, measured by others on a similar machine,
    or another measurement of the same run; `case` or `metric` says which."""

    @property
    def ratio(self) -> float | None:
        """How many times better than the reference; for times and sizes the inverse ratio."""
        if self.reference is None:
            return None
        less_is_better = self.unit in ("s", "ms", "MB")
        return self.reference / self.value if less_is_better else self.value / self.reference


def record(rows: Sequence[Row]) -> None:
    """Print the rows and replace this benchmark's old ones in the table."""
    file = FOLDER / "bench.parquet"
    FOLDER.mkdir(parents=True, exist_ok=True)
    here = machine()
    revision, dash, dirty = (git_revision() or "unknown").partition("-")
    where = {
        "machine": f"{here['cpu']}, {here['cores']} cores",
        "revision": revision[:9] + dash + dirty,
    }
    new = pd.DataFrame([{**asdict(row), "ratio": row.ratio, **where} for row in rows])[COLUMNS]
    new = new.astype({"value": float, "reference": float, "ratio": float})
    if file.exists():
        old = pd.read_parquet(file)
        kept = old[~old["benchmark"].isin(new["benchmark"])]
        new = pd.concat([kept, new], ignore_index=True) if len(kept) else new
    with whole_file(file) as temporary:
        new.to_parquet(temporary, index=False)
    with whole_file(FOLDER / "bench.md") as temporary:
        temporary.write_text(markdown(new))
    for row in rows:
        ratio = "" if row.ratio is None else f"   {row.ratio:.3g}x of {row.reference:g}"
        print(
            f"{row.benchmark:16} {row.case:44} {row.metric:24} {row.value:10.4g} {row.unit}{ratio}"
        )


def markdown(table: pd.DataFrame) -> str:
    """The table as Markdown, with lines for machine and revision above it."""
    where = [f"- {', '.join(sorted(set(table[name])))}" for name in ("machine", "revision")]
    shown = table[COLUMNS[:7]].astype(object).where(table.notna(), None)
    rows = shown.to_markdown(index=False, floatfmt=".4g", missingval="")
    return "\n".join([*where, "", rows, ""])


def seconds(work: Callable[[], Any], repeats: int = 5, warm_up: int = 1) -> float:
    """Median wall time of a call."""
    for _ in range(warm_up):
        work()
    return statistics.median(_timed(work) for _ in range(repeats))


def seconds_in_turn(
    works: Sequence[Callable[[], Any]], repeats: int = 5, warm_up: int = 1
) -> list[float]:
    """Median wall time of each call, measured in turn so that other load affects all alike."""
    for work in [*works] * warm_up:
        work()
    rounds = [[_timed(work) for work in works] for _ in range(repeats)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def in_fresh_process(
    script: str, *arguments: str, threads: int | None = None, keep_memory: bool = True
) -> dict[str, Any]:
    """Run `script --measure arguments` in a new process; returns its last line, which is JSON.

    `keep_memory`: whether it keeps freed memory for the next step, as a study's trials do.
    """
    environment = os.environ | (_KEEP_MEMORY if keep_memory else {})
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, script, "--measure", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]  # json says Any


def _timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
