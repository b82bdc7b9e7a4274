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
    from perpeft_ray.api.plan import StudyPlan
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


def plan_study(config: StudyConfig, budget: str = "") -> StudyPlan:
    """Choose by the data what `config` leaves at its defaults, and say what to expect.

    What `perpeft study --dry-run` prints. `budget`: time that the study may take, such as `2h`.
    Raises InputError for data that cannot be used, and where the default encoder is out of reach.
    """
    from perpeft_ray.api.plan import plan_study

    return plan_study(config, budget)


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
