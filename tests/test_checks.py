"""Every Python file of the repository is within the reach of ruff and mypy."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
MYPY: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]


def printed(*command: str) -> list[str]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def python_files():
    """All that git does not ignore, relative to the repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a clone")
    listed = printed("git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py")
    return {name for name in listed if (ROOT / name).exists()}


def test_ruff_reaches_every_file(python_files):
    shown = printed(sys.executable, "-m", "ruff", "check", "--show-files", ".")
    reached = {Path(file).relative_to(ROOT).as_posix() for file in shown if file.endswith(".py")}
    assert python_files <= reached


def test_mypy_reaches_every_file(python_files):
    """It walks the repository but for what `exclude` matches and folders that start with a dot."""
    assert MYPY["files"] == ["."]
    excluded = [
        name
        for name in python_files
        if any(re.search(pattern, name) for pattern in MYPY["exclude"])
        or any(part.startswith(".") for part in Path(name).parts)
    ]
    assert not excluded


def test_mypy_is_strict_and_skips_no_library_that_has_types():
    assert MYPY["strict"] is True
    assert not [name for name, value in MYPY.items() if value is False]
    for override in MYPY["overrides"]:
        modules = override["module"]
        assert not {"ignore_errors", "follow_imports"} & set(override), modules
        if override.get("ignore_missing_imports"):
            typed = ("torch", "transformers", "peft", "ray", "optuna", "numpy")
            assert not [name for name in modules if name.startswith(typed)]
        else:
            assert modules == ["tests.*"]


def test_citations_stay_in_the_repository():
    """Of the method: its sections are those of METHOD.md, and no file outside is cited."""
    sections = re.findall(r"^## (\d)\.", (ROOT / "perpeft_ray/METHOD.md").read_text(), re.MULTILINE)
    cited = 0
    for name in printed("git", "ls-files", "*.py", "*.md", "*.toml", "*.jinja", "*.yaml"):
        if name == Path(__file__).relative_to(ROOT).as_posix() or not (ROOT / name).exists():
            continue
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"\bspec/\w+\.md|shared/spec", text), name
        for numbers in re.findall(r"METHOD\.md,?\s+sections? (\d(?:(?:, | and )\d)*)", text):
            assert set(re.findall(r"\d", numbers)) <= set(sections), name
            cited += 1
    assert cited > 5
