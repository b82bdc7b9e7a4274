"""What does a study add to its trials? Time of N trials that share one stage 1.

    python benchmarks/study_overhead.py

In one process, on toyshop with LoRA: one trial trains stage 1, then N find it in the cache. The
bound is 1.15 x (stage 1 + N x stage 3) of the trials' own training and evaluation, without Ray.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path

from _bench import Row, record

from perpeft_ray.config import StudyConfig, TrainSettings
from perpeft_ray.train.trial import run_trial
from perpeft_ray.train.workspace import prepare

TRIALS = 4


def main() -> None:
    """Measure and record."""
    settings = TrainSettings(epochs=4, personal_epochs=2)
    config = StudyConfig(train=settings).trial(
        "perpeft",
        variant="lora",
        rank=4,
        groups=4,
        conditioning_weight=0.5,
        seed=0,
        learning_rate=1.5e-3,
        mode="sequential",
    )
    with tempfile.TemporaryDirectory() as scratch:
        workspace = prepare("toyshop", "toyshop-clip", Path(scratch))
        stage1 = own = 0.0
        started = time.perf_counter()
        for number in range(TRIALS):
            trial = dataclasses.replace(config, conditioning_weight=0.25 * (number + 1))
            outcome = run_trial(trial, workspace, lambda record: None, test=True)
            stage1 = outcome.stage1_seconds  # of the one that trained it, also where it was found
            own += outcome.stage2_seconds + outcome.stage3_seconds + outcome.evaluate_seconds
        whole = time.perf_counter() - started
    bound = stage1 + own
    case = f"{TRIALS} trials over one stage 1"
    record(
        [
            Row("study_overhead", case, "seconds", whole, "s"),
            Row("study_overhead", case, "stage 1 + N x the rest", bound, "s"),
            Row("study_overhead", case, "share of that", whole / bound, "", 1.15),
        ]
    )


if __name__ == "__main__":
    main()
