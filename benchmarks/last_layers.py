"""What `peft.last_layers` saves: CPU seconds of LoRA with and without stored states of the rest.

    python benchmarks/last_layers.py                       # shapes of CLIP ViT-B/32, 16 items
    python benchmarks/last_layers.py --last-layers 6 --items 32

Random weights in float32 and one thread. CPU seconds are what other work on the machine does not
lengthen; the least of two. References are those of all layers.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from _bench import Row, record
from torch.func import functional_call
from transformers import CLIPConfig, CLIPModel

from perpeft_ray.data.catalogue import Catalogue
from perpeft_ray.encoder.fast.prefix import SuffixItemEncoder, prefix_states
from perpeft_ray.encoder.foundation import Towers
from perpeft_ray.encoder.halves import DualText, ImageHalf
from perpeft_ray.encoder.items import TowerItemEncoder
from perpeft_ray.encoder.variants import AdapterSettings, add_adapter, trainable

TOKENS = 24
METRICS = ("CPU seconds of training", "CPU seconds of a forward")


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    last_layers: int = 3
    """Adapted layers of the 12."""
    items: int = 16
    """Items a step."""


def main() -> None:
    """Measure and record: all layers, and the last ones live and from stored states."""
    settings = tyro.cli(Settings, description=__doc__)
    torch.set_num_threads(1)
    last = settings.last_layers
    works = {
        "all layers": (None, False),
        f"last {last}, live": (last, False),
        f"last {last}, stored": (last, True),
    }
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        catalogue = _catalogue(settings.items, Path(folder))
        for name, (layers, stored) in works.items():
            taken = _measure(catalogue, layers, Path(folder) / "states" if stored else None)
            whole: list[float | None] = [row.value for row in rows[:2]] or [None, None]
            case = f"ViT-B/32 LoRA, {settings.items} items, float32, {name}"
            for metric, seconds, reference in zip(METRICS, taken, whole, strict=True):
                rows.append(Row("last_layers", case, metric, seconds, "s", reference))
    record(rows)


def _measure(
    catalogue: Catalogue, last_layers: int | None, folder: Path | None
) -> tuple[float, float]:
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig()).requires_grad_(False)
    towers = Towers(model, DualText(model), ImageHalf(model)).eval()
    states = None
    if folder is not None and last_layers is not None:
        states = prefix_states(towers, catalogue, folder, last_layers)
    add_adapter(towers, AdapterSettings("lora", 4, 0.1, last_layers, seed=0))
    encoder = (
        TowerItemEncoder(towers, catalogue)
        if states is None
        else SuffixItemEncoder(towers, catalogue, states)
    ).train()
    module = trainable(encoder)
    items = np.arange(1, catalogue.num_items + 1)

    def encode() -> torch.Tensor:
        return functional_call(encoder, dict(module), encoder.inputs(items)).square().mean()  # type: ignore[no-any-return]  # nn.Module's call is untyped

    with torch.no_grad():
        forward = _seconds(encode)
    return _seconds(lambda: encode().backward()), forward  # type: ignore[no-untyped-call]  # torch leaves it untyped


def _seconds(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(2):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return min(taken)


def _catalogue(items: int, folder: Path) -> Catalogue:
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 40_000, size=(items + 1, TOKENS)).astype(np.int32)
    ids[:, -1] = 49_407  # CLIP's end of text
    return Catalogue(
        folder=folder,
        pixels=rng.integers(0, 256, size=(items + 1, 3, 224, 224), dtype=np.uint8),
        pixel_row=np.arange(items + 1, dtype=np.int32),
        token_ids=ids,
        token_counts=np.full(items + 1, TOKENS, dtype=np.int32),
        has_title=np.ones(items + 1, dtype=bool),
    )


if __name__ == "__main__":
    main()
