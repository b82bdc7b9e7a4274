"""perpeft-ray: which personalised PEFT set-up is best for your catalogue.

    import perpeft_ray
    from perpeft_ray.config import StudyConfig

    study = perpeft_ray.run_study(StudyConfig(dataset="toyshop", study="first"))
    study = perpeft_ray.open_study("results/first")
    model = perpeft_ray.load(...)  # a folder that study.export wrote

The functions import torch and Ray when they need them, not the package.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perpeft_ray.api.study import OpenedStudy
    from perpeft_ray.config import StudyConfig
    from perpeft_ray.models.loaded import LoadedModel

__version__ = "0.1.0"


def run_study(config: StudyConfig) -> OpenedStudy:
    """Run or resume an ablation study, and write its tables and report.

    `perpeft study` runs this. Raises InputError before anything is written, and StudyStoppedError
    if a disk is full or Ray has no room.
    """
    from perpeft_ray.api.study import run_study

    return run_study(config)


def open_study(place: str | PathLike[str]) -> OpenedStudy:
    """The study in a folder or at a URI, `<storage>/<study>`.

    Raises InputError if there is none.
    """
    from perpeft_ray.api.study import open_study

    return open_study(str(place))


def load(folder: str | PathLike[str]) -> LoadedModel:
    """Load a model that `perpeft export` wrote. Raises InputError for anything else.

    Reads it into memory on the CPU; imports torch only here.
    """
    from pathlib import Path

    from perpeft_ray.models.loaded import LoadedModel

    return LoadedModel(Path(folder))
