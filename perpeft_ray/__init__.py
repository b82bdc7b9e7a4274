"""perpeft-ray: which personalised PEFT set-up is best for your catalogue."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perpeft_ray.models.loaded import LoadedModel

__version__ = "0.1.0"


def load(folder: str | PathLike[str]) -> LoadedModel:
    """Load a model that `perpeft export` wrote. Raises InputError for anything else.

    Reads it into memory on the CPU; imports torch only here.
    """
    from pathlib import Path

    from perpeft_ray.models.loaded import LoadedModel

    return LoadedModel(Path(folder))
