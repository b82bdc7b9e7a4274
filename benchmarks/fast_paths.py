"""What each fast path of the encoder gives: CPU seconds of a training step with and without it.

    python benchmarks/fast_paths.py

Small CLIP (small_clip.py), LoRA, 16 users, bfloat16, one thread; in turn, the least of five. A
path that gives under a tenth is not worth its code. Stored states (prefix.py) are of the layers
before the last two, the only ones with LoRA there. `gpu.py` measures the same on a GPU.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from _bench import Row, record
from _shops import SMALL
from _steps import open_bench, shop_and_clip

from perpeft_ray.encoder.fast.dropout import BitDropout
from perpeft_ray.train.workspace import Workspace


def _bernoulli(dropout: BitDropout, x: torch.Tensor) -> torch.Tensor | None:
    """As `BitDropout.kept`, by torch's own draws."""
    return torch.empty_like(x).bernoulli_(1 - dropout.p) if dropout.training else None


Changes = list[tuple[str, Any]]
ALL_LAYERS: dict[str, Changes] = {
    "any of them": [
        ("perpeft_ray.encoder.fast.enabled", lambda: False),
        ("perpeft_ray.encoder.fast.clip.runs", lambda model: False),
    ],
    "lora.py": [("perpeft_ray.encoder.fast.lora.compute_in_bfloat16", lambda model: None)],
    "clip.py": [("perpeft_ray.encoder.fast.clip.runs", lambda model: False)],
    "sdpa.py": [
        ("perpeft_ray.encoder.fast.sdpa.replace_attention", lambda model: None),
        ("perpeft_ray.encoder.fast.sdpa._is_short", lambda q, k, mask: False),
    ],
    "dropout.py": [("perpeft_ray.encoder.fast.dropout.BitDropout.kept", _bernoulli)],
}
LAST_LAYERS: dict[str, Changes] = {
    "prefix.py": [("perpeft_ray.train.build.prefix_states", lambda *_: None)],
}


def main() -> None:
    """Measure and record."""
    torch.set_num_threads(1)
    case = "small CLIP, LoRA, 16 users, bfloat16"
    with tempfile.TemporaryDirectory() as scratch:
        workspace = shop_and_clip(Path(scratch), SMALL)
        rows = measured(workspace, case, ALL_LAYERS, None)
        rows += measured(workspace, f"{case}, last 2 of 4 layers", LAST_LAYERS, 2)
    record(rows)


def measured(
    workspace: Workspace, case: str, paths: dict[str, Changes], last_layers: int | None
) -> list[Row]:
    """A step with all paths against one without each, in turn."""
    works: dict[str, Callable[[], Any]] = {}
    for name, changes in {"all": [], **paths}.items():
        with _changed(changes):
            bench = open_bench(workspace, groups=1, dtype="bfloat16", last_layers=last_layers)
            works[name] = _under(changes, bench.step(1))
    least = dict.fromkeys(works, float("inf"))
    for _ in range(5):
        for name, work in works.items():
            started = time.process_time()
            work()
            least[name] = min(least[name], time.process_time() - started)
    return [
        Row("fast_paths", case, f"CPU seconds, without {name}", least["all"], "s", least[name])
        for name in paths
    ]


def _under(changes: Changes, work: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> None:
        with _changed(changes):
            work()

    return run


@contextlib.contextmanager
def _changed(changes: Changes) -> Any:
    with contextlib.ExitStack() as stack:
        for name, value in changes:
            stack.enter_context(patch(name, value))
        yield


if __name__ == "__main__":
    main()
