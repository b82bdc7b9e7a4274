"""The authors' small case: both towers 4 layers, width 128; 300 users x 500 items with images.

    python benchmarks/small_clip.py

Images of 64 pixels in patches of 16 (17 tokens; the patch size of the authors' run is not known to
us), BPE vocabulary, titles of 8 to 16 tokens, LoRA r=4, 16 users per step, T = 10. References: the
authors' program, measured by others on two quiet cores of another machine; and a plain program
(_plain.py), which has the same loss and ranks, in turn with ours in the same process. `input` is
the share of a stage-1 step that sampling, padding, deduplication and pixel fetch take.
"""

from __future__ import annotations

import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _bench import Row, in_fresh_process, record, seconds, seconds_in_turn
from _plain import Plain
from _shops import SMALL
from _steps import Bench, open_bench, shop_and_clip

from perpeft_ray.encoder.rows import CatalogueRows
from perpeft_ray.train.workspace import open_catalogue

STEPS = {"stage-1 step": 1, "stage-3 step": 3}
PLAIN = "plain, float32"
EVALUATION = "evaluation of 300 users, 8 groups"
AUTHORS = {"stage-1 step": 0.57, "stage-3 step": 0.69, EVALUATION: 8.3}


def main() -> None:
    """Measure in a new process, which keeps memory as trials do, and record."""
    found = in_fresh_process(str(Path(__file__)))
    plain = found.pop(PLAIN)
    rows = [Row("small_clip", PLAIN, name, plain[name], "s") for name in AUTHORS]
    for case, ours in found.items():
        for name, authors in AUTHORS.items():
            rows += [
                Row("small_clip", case, name, ours[name], "s", authors),
                Row("small_clip", f"{case} against plain", name, ours[name], "s", plain[name]),
            ]
        share = ours["inputs"] / ours["stage-1 step"]
        rows.append(Row("input", f"small CLIP, {case}", "share of a step", share, ""))
    record(rows)


def measure() -> dict[str, dict[str, float]]:
    """Median seconds of each piece of work, ours by dtype and the plain program's."""
    with tempfile.TemporaryDirectory() as scratch:
        workspace = shop_and_clip(Path(scratch), SMALL)
        exact, auto = (open_bench(workspace, dtype=dtype) for dtype in ("float32", "auto"))
        let_adapters_act(exact)
        plain = Plain(exact)
        check(exact, plain)
        benches = {"float32": exact, f"auto ({auto.dtype})": auto}
        times = {}
        for name, stage in STEPS.items():
            works = [bench.step(stage) for bench in benches.values()]
            works.append(partial(plain.step, exact.stage_data(stage)))
            times[name] = seconds_in_turn(works, repeats=3)
        works = [*(bench.evaluation() for bench in benches.values()), plain.evaluate]  # type: ignore[list-item]  # only its seconds count
        times[EVALUATION] = seconds_in_turn(works, repeats=3)
        found = {
            case: {name: taken[place] for name, taken in times.items()}
            for place, case in enumerate([*benches, PLAIN])
        }
        for case, bench in benches.items():
            found[case]["inputs"] = inputs(bench)
    return found


def let_adapters_act(bench: Bench) -> None:
    """Give every group's LoRA an effect: untrained, it adds zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for module in bench.state.modules.values():
            for name, parameter in module.items():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)


def check(bench: Bench, plain: Plain) -> None:
    """Raise RuntimeError if the plain program has another loss or other ranks.

    Without dropout, which the two draw differently; both in float32.
    """
    model, users = bench.job.model.eval(), bench.job.sampler.trainable_users[:16]
    batch = bench.job.sampler.sample(users, np.random.default_rng(0), pool=None, weight=0.0)
    for group, module in bench.state.modules.items():
        with torch.no_grad():
            total, positions = model.loss_sum(batch, module, 0.0)
            loss, other = total.item() / positions, plain.evaluated_loss(batch, group)
        if abs(loss - other) > 1e-4 * loss:
            raise RuntimeError(f"the loss is {loss}, but the plain program's is {other}")
    differ = int(np.count_nonzero(bench.evaluation()() != plain.evaluate()))
    # Two items' scores may be the same up to rounding.
    if differ > 3:
        raise RuntimeError(f"{differ} users have other ranks in the plain program")


def inputs(bench: Bench) -> float:
    """Seconds of a step before its first matrix product."""
    job, catalogue = bench.job, CatalogueRows(open_catalogue(bench.job.workspace))
    users, rng = job.sampler.trainable_users[:16], np.random.default_rng(0)

    def prepare() -> None:
        batch = job.sampler.sample(users, rng, pool=None, weight=0.0)
        items, _ = np.unique(batch.items(), return_inverse=True)
        catalogue.batch(items[1:], job.device)

    return seconds(prepare, repeats=21)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure()))
    else:
        main()
