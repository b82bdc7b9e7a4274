"""Where a study ran: versions, git revision and machine, for `study.json`."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import perpeft_ray

_REPOSITORY = Path(perpeft_ray.__file__).parents[1]
_LIBRARIES = (
    "numpy",
    "optuna",
    "pandas",
    "peft",
    "pyarrow",
    "ray",
    "scikit-learn",
    "torch",
    "transformers",
)


def versions() -> dict[str, str]:
    """Versions of Python, this package and the libraries that determine a result."""
    own = {"python": platform.python_version(), "perpeft-ray": perpeft_ray.__version__}
    return own | {name: metadata.version(name) for name in _LIBRARIES}


def git_revision() -> str | None:
    """Commit of the code, with `-dirty` if it was changed; None outside a clone."""
    if shutil.which("git") is None or not (_REPOSITORY / ".git").exists():
        return None
    described = subprocess.run(
        ["git", "-C", _REPOSITORY, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None


def machine() -> dict[str, Any]:
    """Processor model, logical cores, memory in MB, and the operating system."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_mb": round(pages / 1e6),
        "system": platform.platform(),
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
