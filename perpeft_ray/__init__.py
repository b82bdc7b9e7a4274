"""perpeft-ray: which personalised PEFT set-up is best for your catalogue.

    import perpeft_ray
    from perpeft_ray.config import StudyConfig

    study = perpeft_ray.run_study(StudyConfig(dataset="toyshop", study="first"))
    study = perpeft_ray.open_study("results/first")
    model = perpeft_ray.load(...)  # a folder that study.export wrote

The functions import torch and Ray when they need them, not the package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perpeft_ray.api.plan import plan_study
    from perpeft_ray.api.study import open_study, run_study
    from perpeft_ray.models.loaded import load

__version__ = "0.1.0"
__all__ = ["load", "open_study", "plan_study", "run_study"]

_PLACES = {
    "load": "models.loaded",
    "open_study": "api.study",
    "plan_study": "api.plan",
    "run_study": "api.study",
}


def __getattr__(name: str) -> Any:
    """Import a function when it is first used."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
