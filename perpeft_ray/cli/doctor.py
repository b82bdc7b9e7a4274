"""`perpeft doctor`: is this cluster ready for a study, and what to change."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from perpeft_ray.cli.study import StudyOptions
from perpeft_ray.screen import console

if TYPE_CHECKING:
    from perpeft_ray.data.interactions import Dataset


@dataclass(frozen=True)
class Doctor(StudyOptions):
    """`perpeft doctor`, with the options of `perpeft study`."""

    def run(self) -> None:
        """Print a table of checks; exit with 1 if one fails."""
        from perpeft_ray.data.places import is_uri
        from perpeft_ray.data.sources import raw_files
        from perpeft_ray.store.folder import storage_folder
        from perpeft_ray.study.check import (
            check_inputs,
            check_settings,
            check_storage_outlives_job,
            with_encoder,
        )

        config = self.config
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
            from perpeft_ray.study.doctor import diagnose

            checks = diagnose(config, storage, data)
        table = Table("check", "", "found", "what to change", box=box.SIMPLE_HEAD)
        for check in checks:
            mark = "[green]ok" if check.ok else "[red]change"
            table.add_row(check.name, mark, escape(check.found), escape(check.change or ""))
        console().print(table)
        if not all(check.ok for check in checks):
            sys.exit(1)
