"""Shared by benchmarks of growing sizes: rows, ratios and a figure."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _bench import Row as Figure
from _bench import record


@dataclass(frozen=True)
class Row:
    """The cost of one size."""

    items: int
    seconds: float
    cpu_seconds: float
    """CPU seconds of all threads, which other work on the machine does not affect."""
    peak_mb: float
    """Peak memory of the work itself, including memory-mapped files."""
    checked_mb: float
    """Peak memory after reading and checking the whole folder, as the command does at its end."""
    note: str


def in_own_process(script: str, arguments: Sequence[str]) -> Row:
    """Run a script in its own process; its last printed line is a `Row` in JSON."""
    command = [sys.executable, script, "--measure", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def show(title: str, rows: Sequence[Row], figure: Path) -> None:
    """Print, record and draw the rows, and compare the last with the first."""
    print(title)
    print(f"{'items':>10} {'seconds':>8} {'CPU s':>8} {'peak MB':>8} {'checked MB':>11}")
    for row in rows:
        print(
            f"{row.items:10,} {row.seconds:8.1f} {row.cpu_seconds:8.1f} {row.peak_mb:8,.0f} "
            f"{row.checked_mb:11,.0f}  {row.note}"
        )
    first, last = rows[0], rows[-1]
    print(
        f"{last.items / first.items:g}x the items: {last.seconds / first.seconds:.1f}x the time, "
        f"{last.cpu_seconds / first.cpu_seconds:.1f}x the CPU time, "
        f"{last.peak_mb / first.peak_mb:.2f}x the memory"
    )
    record(
        [
            Figure(figure.stem, f"{title}, {row.items:,} items", metric, value, unit)
            for row in rows
            for metric, value, unit in (
                ("seconds", row.seconds, "s"),
                ("CPU seconds", row.cpu_seconds, "s"),
                ("peak memory", row.peak_mb, "MB"),
            )
        ]
    )
    _draw(title, rows, figure)


def _draw(title: str, rows: Sequence[Row], figure: Path) -> None:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(11, 3), layout="constrained")
    canvas.suptitle(title)
    items = [row.items for row in rows]
    for place, (name, values) in enumerate(
        {
            "seconds": [row.seconds for row in rows],
            "CPU seconds": [row.cpu_seconds for row in rows],
            "peak MB": [row.peak_mb for row in rows],
        }.items(),
        start=1,
    ):
        axes = canvas.add_subplot(1, 3, place)
        axes.loglog(items, values, marker="o")
        axes.loglog(items, [values[0] * count / items[0] for count in items], "k:", label="linear")
        axes.set(xlabel="items", ylabel=name)
        axes.legend()
    figure.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(figure, dpi=150)
    print(f"drawn to {figure}")
