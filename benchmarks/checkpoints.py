"""What checkpoints cost: seconds and bytes of writing one after every epoch, against the epoch.

    python benchmarks/checkpoints.py                       # toyshop, LoRA, 6 groups, 1 + 4 epochs
    python benchmarks/checkpoints.py --variant iisan --groups 8

One PerPEFT trial in this process. CPU seconds are what other work on the machine does not lengthen.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from _bench import Row, record

from perpeft_ray.config import StudyConfig, TrainSettings, Variant
from perpeft_ray.train import fit
from perpeft_ray.train.checkpoint import Checkpoints
from perpeft_ray.train.trial import run_trial
from perpeft_ray.train.workspace import prepare


@dataclass(frozen=True)
class Settings:
    """The trial to measure."""

    dataset: str = "toyshop"
    """As of a study."""
    variant: Variant = "lora"
    """As of a study."""
    groups: int = 6
    """Groups of users."""
    personal_epochs: int = 4
    """Epochs of stage 3."""


def main(settings: Settings) -> None:
    """Measure and record."""
    torch.set_num_threads(1)
    spent: dict[str, list[tuple[float, float]]] = {"epoch": [], "checkpoint": []}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            result = function(*arguments, **named)
            spent[name].append((time.perf_counter() - wall, time.process_time() - cpu))
            return result

        return run

    study = StudyConfig(train=TrainSettings(epochs=1, personal_epochs=settings.personal_epochs))
    config = study.trial(
        "perpeft",
        seed=0,
        variant=settings.variant,
        rank=4,
        groups=settings.groups,
        conditioning_weight=0.5,
        learning_rate=1.5e-3,
    )
    sizes: list[int] = []
    with tempfile.TemporaryDirectory(prefix="perpeft-checkpoints-") as scratch:
        workspace = prepare(settings.dataset, study.encoder, Path(scratch) / "cache")
        checkpoints = Path(scratch) / "trial"

        def look(record: Any) -> None:
            latest = checkpoints.glob("*/stage.safetensors")
            sizes.append(sum(file.stat().st_size for file in latest))

        fit.train_epoch = timed("epoch", fit.train_epoch)  # type: ignore[attr-defined]  # timed on the way
        fit.evaluate = timed("epoch", fit.evaluate)  # type: ignore[attr-defined]  # timed on the way
        Checkpoints.save = timed("checkpoint", Checkpoints.save)  # type: ignore[method-assign]
        run_trial(config, workspace, look, test=False, checkpoints=checkpoints)
    case = f"{settings.dataset}, {settings.variant}, {settings.groups} groups"
    rows = [Row("checkpoints", case, "size", sizes[-1] / 2**20, "MB")]
    for place, clock in enumerate(("wall", "CPU")):
        of = {name: sum(pair[place] for pair in pairs) for name, pairs in spent.items()}
        each = 1000 * of["checkpoint"] / len(sizes)
        share = of["checkpoint"] / of["epoch"]
        rows += [
            Row("checkpoints", case, f"{clock} time of writing one", each, "ms"),
            Row("checkpoints", case, f"share of an epoch, {clock} time", share, ""),
        ]
    record(rows)


if __name__ == "__main__":
    main(tyro.cli(Settings))
