"""`perpeft doctor`: is this cluster ready for a study, and what to change."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from perpeft_ray.cli.study import StudyOptions
from perpeft_ray.config import StudyConfig
from perpeft_ray.screen import console as console_on

if TYPE_CHECKING:
    from perpeft_ray.data.interactions import Dataset
    from perpeft_ray.study.doctor.diagnosis import Check


@dataclass(frozen=True)
class Doctor(StudyOptions):
    """`perpeft doctor`, with the options of `perpeft study`."""

    def run(self) -> None:
        """Print a table of checks; exit with 1 if one fails."""
        doctor(self.config)


def doctor(config: StudyConfig) -> None:
    """Print a table of checks of a study; exit with 1 if one fails."""
    from perpeft_ray.data.places import is_uri
    from perpeft_ray.data.sources import raw_files
    from perpeft_ray.store.folder import storage_folder
    from perpeft_ray.study.check import (
        check_inputs,
        check_settings,
        check_storage_outlives_job,
        with_encoder,
    )
    from perpeft_ray.study.doctor.examine import diagnose

    check_storage_outlives_job(config.storage)
    storage = config.storage if is_uri(config.storage) else storage_folder(config.storage)
    data: Dataset | list[Path]
    # Generate the toyshop in a temporary folder, to leave nothing in the storage.
    with tempfile.TemporaryDirectory(prefix="perpeft-doctor-") as scratch:
        if raw := raw_files(config.dataset):  # preparing them may take hours
            config = with_encoder(config, has_images=True)
            check_settings(config, num_users=None)
            data = raw
        else:
            config, data = check_inputs(config, Path(scratch))
        checks = diagnose(config, storage, data)
    console_on().print(checks_table(checks))
    if not all(check.ok for check in checks):
        sys.exit(1)


def checks_table(checks: Sequence[Check]) -> Table:
    """One row per check: what was found, and what to change."""
    table = Table("check", "", "found", "what to change", box=box.SIMPLE_HEAD)
    for check in checks:
        mark = "[green]ok" if check.ok else "[red]change"
        table.add_row(check.name, mark, escape(check.found), escape(check.change or ""))
    return table
