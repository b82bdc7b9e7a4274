"""The command line of a study, or of its best setting."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from typing import Any

import pandas as pd

from perpeft_ray.config import SEARCHABLE, StudyConfig


def study_command(study: StudyConfig) -> str:
    """The `perpeft study` command of a study: one line per field that differs from the default."""
    options = list(_differences(study, StudyConfig()))
    if not study.is_toyshop:  # whose study would choose by the data what is not given
        options.insert(0, ["--preset", "toyshop"])
        if study.encoder == StudyConfig().encoder:
            options.insert(1, ["--encoder", study.encoder])
    return " \\\n  ".join(["perpeft study", *(shlex.join(option) for option in options)])


def fixed_to(study: StudyConfig, setting: pd.Series) -> StudyConfig:
    """The study with every searched setting fixed; `setting`: a row of `best_settings`.

    Its name is `<study>_best`, so that it does not use the folder of the search.
    """
    changed = dataclasses.replace(
        study,
        study=f"{study.study}_best",
        peft=dataclasses.replace(study.peft, variant=setting["variant"]),
    )
    for searchable in SEARCHABLE:
        part, _, name = searchable.given.partition(".")
        value, given = setting[searchable.name], getattr(getattr(study, part), name)
        if pd.isna(value):  # it does not apply to the variant
            continue
        value = int(value) if searchable.whole else float(value)
        if value != given:
            settings = dataclasses.replace(getattr(changed, part), **{name: value})
            changed = dataclasses.replace(changed, **{part: settings})
    return changed


def _differences(settings: Any, defaults: Any, prefix: str = "") -> Iterator[list[str]]:
    for field in dataclasses.fields(settings):
        value, default = getattr(settings, field.name), getattr(defaults, field.name)
        name = field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from _differences(value, default, f"{prefix}{name}.")
        elif value != default and isinstance(value, bool):
            yield [f"--{prefix}{'' if value else 'no-'}{name}"]
        elif value != default:
            values = value if isinstance(value, tuple) else (value,)
            yield [f"--{prefix}{name}", *map(str, values)]
