"""perpeft-ray: which personalised PEFT set-up is best for your catalogue."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perpeft_ray.models.loaded import LoadedModel

__version__ = "0.1.0"


def load(folder: str | PathLike[str]) -> LoadedModel:
    """A model that `perpeft export` wrote, ready to recommend. Raises InputError for anything else.

    It is read into memory on the CPU; torch is imported here, not with the package.
    """
    from pathlib import Path

    from perpeft_ray.models.loaded import LoadedModel

    return LoadedModel(Path(folder))
