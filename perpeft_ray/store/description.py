"""Content of `study.json`: a study's configuration, the role of each setting, and where it ran."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import typing
from importlib import metadata
from pathlib import Path
from typing import Any

import perpeft_ray
from perpeft_ray.config import VARIED, StudyConfig, TrialConfig
from perpeft_ray.errors import InputError
from perpeft_ray.train.fingerprints import Fingerprints

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

NO_PART = {"storage", "start_timeout_s", "log", "memory_gb", "metrics.k"}
"""Settings that may change when a study resumes: they do not affect its results."""


TOLD_FROM = 0.001
"""Smaller shares of repeats are not reported."""


def declared_parameters(config: StudyConfig, scientific: tuple[str, ...]) -> dict[str, list[str]]:
    """The fields of `TrialConfig` by their role in a study.

    Scientific: what the study compares. Nuisance: searched for each of these, or repeated (the
    seed), so that the comparison is fair. Fixed: the rest. Source: Google's Deep
    Learning Tuning Playbook.
    """
    names = ("variant", *VARIED)
    varied = {name for name in names if len(config.values(name)) > 1} | {"seed"}
    nuisance = varied - set(scientific)
    fields = [field.name for field in dataclasses.fields(TrialConfig)]
    return {
        "scientific": [name for name in fields if name in scientific],
        "nuisance": [name for name in fields if name in nuisance],
        "fixed": [name for name in fields if name not in nuisance and name not in scientific],
    }


def check_same(there: dict[str, Any], config: StudyConfig, path: Path | str) -> None:
    """Raise `InputError` for the first differing field that affects results.

    `there`: the settings in the `study.json` of `path`.
    """
    old, new = dotted(there), dotted(as_json(config))
    for name in sorted(old.keys() | new.keys(), key=[*new, *old].index):
        if name not in NO_PART and old.get(name) != new.get(name):
            if name not in old or name not in new:
                raise _another_version(name, path)
            raise InputError(
                f"`{name}` must be {old.get(name)} as in the study that {path} holds, but is "
                f"{new.get(name)}; another `study` name keeps both"
            )


def check_unchanged(
    description: dict[str, Any], now: Fingerprints, config: StudyConfig, path: Path | str
) -> None:
    """Raise `InputError` if data or encoder changed since a study began.

    `description`: the content of the `study.json` in `path`; `now`: the present fingerprints.
    """
    began = description.get("fingerprints")
    if began is None:
        raise InputError(
            f"`study` must have the fingerprints of its data in {path}, but that was written by an "
            "earlier version; choose a new --study"
        )
    changed = Fingerprints(**began).changes(now, config.dataset, config.encoder)
    if changed:
        raise InputError(
            f"`dataset` and `encoder` must stay as they were when the study in {path} began, but "
            f"{changed} changed since; put back what was there, or choose a new --study"
        )


def repeat_warnings(repeats: dict[str, float] | None) -> list[str]:
    """Warnings about repeats in the data; `repeats`: shares as in `study.json`, None: unknown."""
    warnings = []
    if repeats and repeats["targets_in_history"] >= TOLD_FROM:
        warnings.append(
            f"{repeats['targets_in_history']:.1%} of the test targets are already in the user's "
            "history; they are easy to rank, so every metric is higher than for new items only."
        )
    if repeats and repeats["repeated_rows"] >= TOLD_FROM:
        warnings.append(
            f"{repeats['repeated_rows']:.1%} of the interactions are repeated rows (same user, "
            "item and time); was a file concatenated twice?"
        )
    return warnings


def as_json(config: StudyConfig) -> dict[str, Any]:
    """A configuration's JSON form, where tuples are lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))  # type: ignore[no-any-return]  # json says Any


def from_json(kind: type[Any], values: Any, path: Path | str, prefix: str = "") -> Any:
    """A dataclass of dataclasses from its JSON form.

    Raises InputError, with the study's place `path`, for a field that this version does not have,
    and for bad values.
    """
    if not isinstance(values, dict):
        name = prefix.rstrip(".") or "config"
        raise InputError(f"`{name}` of the study in {path} must be settings, but is {values!r}")
    hints = typing.get_type_hints(kind)
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            raise _another_version(prefix + name, path)
        if dataclasses.is_dataclass(hints[name]):
            within = typing.cast(type, hints[name])
            arguments[name] = from_json(within, value, path, f"{prefix}{name}.")
        else:
            arguments[name] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**arguments)
    except (ValueError, TypeError, AttributeError, LookupError) as error:  # of other types
        raise InputError(f"the study in {path} must have valid settings, but {error}") from error


def _another_version(name: str, path: Path | str) -> InputError:
    return InputError(
        f"`{name}` must be a setting of both the study in {path} and this version, but another "
        "version wrote the study; choose another `study` name"
    )


def dotted(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, whose keys are joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= dotted(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


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
