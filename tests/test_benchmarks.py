"""What the benchmarks share."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("revision", "shown"),
    [(None, "unknown"), ("3f" * 20, "3f3f3f3f3"), ("3f" * 20 + "-dirty", "3f3f3f3f3-dirty")],
)
def test_the_table_has_a_short_revision(revision, shown, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    monkeypatch.chdir(tmp_path)
    bench = importlib.import_module("_bench")
    monkeypatch.setattr(bench, "git_revision", lambda: revision)
    bench.record([bench.Row("speed", "small", "time", 1.5, "s")])
    assert f"\n- {shown}\n" in (tmp_path / "results/bench/bench.md").read_text()
