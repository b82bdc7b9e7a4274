"""The command of a study whose trials do not train, to be killed, starved and continued by tests.

    python tests/study/quick_study.py STORAGE [--die PLACE | --eat PLACE] [FIELD VALUE ...]

Only the runner is a stand-in: lock, folder, Ray, Tune, Optuna and rows are the real ones. A trial
that begins or ends leaves a file in `STORAGE/runs`, or in `$RUNS/runs`, the first with the number
of its process.

--die search:3      kill the whole script in the search's fourth trial that begins
--die ablation:1    the same in the ablation
--die unwritten:2   after the last epoch of the third trial that ends, before its row is written
--eat search:3      let that trial's process take memory, 5 GB at most, until it is killed
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2]))

from perpeft_ray.cli import parse_study, run
from perpeft_ray.config import StudyConfig, TrialConfig
from perpeft_ray.data.split import RepeatShares
from perpeft_ray.store.folder import StudyFolder
from perpeft_ray.study import run as study_run
from perpeft_ray.study.trainable import Study
from perpeft_ray.train.fingerprints import Fingerprints
from perpeft_ray.train.outcome import EpochRecord, TrialOutcome
from tests.study.fakes import fake_run

STEP, STEPS = 100_000_000, 50
"""Bytes taken every 0.1 s, so that Ray, which looks every 0.25 s, sees them; and how often."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and when."""

    runs: Path
    driver: int
    kind: str
    """`--die`, `--eat`, or nothing."""
    place: str

    def strike(self, place: str) -> None:
        """Where `place` says so; at each place once in the life of a storage."""
        number = len(list(self.runs.glob(f"at-{place}-*")))
        (self.runs / f"at-{place}-{uuid.uuid4().hex}").touch()
        if self.place != f"{place}:{number}":
            return
        if self.kind == "--die":
            os.kill(self.driver, signal.SIGKILL)
            time.sleep(600)  # until Ray ends this process too
        (self.runs / f"eats-{os.getpid()}").touch()
        held = []
        for _ in range(STEPS):
            held.append(b"x" * STEP)
            time.sleep(0.1)
        time.sleep(30)

    def run(
        self,
        config: TrialConfig,
        workspace: object,
        report: Callable[[EpochRecord], None],
        *,
        test: bool,
        **more: Any,
    ) -> TrialOutcome:
        """A trial of a few milliseconds an epoch."""
        name = f"{'ablation' if test else 'search'}-{config.config_hash}"
        (self.runs / f"began-{name}-{os.getpid()}-{uuid.uuid4().hex}").touch()
        self.strike("ablation" if test else "search")

        def slowly(record: EpochRecord) -> None:
            time.sleep(0.01)
            report(record)

        outcome = fake_run(config, workspace, slowly, test=test, **more)
        self.strike("unwritten")
        (self.runs / f"ended-{name}-{uuid.uuid4().hex}").touch()
        return outcome


def open_study(fault: Fault) -> Callable[..., Study]:
    """Replaces `_open_study`: the stand-in as runner, and no data."""

    def opened(config: StudyConfig, folder: StudyFolder, *_: Any) -> Study:
        class Workspace:
            num_users, num_items = 3, 5

        return Study(
            config=config,
            folder=folder,
            workspace=Workspace(),
            run=fault.run,
        )

    return opened


def start(arguments: list[str]) -> None:
    """Run the study."""
    storage, *rest = arguments
    kind = place = ""
    if rest[:1] in (["--die"], ["--eat"]):
        kind, place, *rest = rest
    runs = Path(os.environ.get("RUNS", storage)) / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    fault = Fault(runs, os.getpid(), kind, place)
    study_run._open_study = open_study(fault)
    study_run.check_inputs = lambda config, *_, **__: (config, None)  # type: ignore[attr-defined]  # not public there
    study_run.repeat_shares = lambda *_: RepeatShares(0.0, 0.0)  # type: ignore[attr-defined]
    study_run.fingerprints = lambda *_: Fingerprints("tables", "images", "encoder")  # type: ignore[attr-defined]
    small = (
        "--train.epochs 1 --train.personal-epochs 4 --train.validate-every 1 "
        "--search.grace-epochs 1 --search.trials 9 --search.max-concurrent 1 "
        "--search.learning-rates 5e-3 --search.groups 4 8 --search.ranks 2 4 "
        "--methods global perpeft"
    )
    study = parse_study([*small.split(), "--storage", storage, *rest])
    run(lambda: study_run.run_study(study))


def run_quick_study(
    storage: Path | str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """This command in a process of its own; the environment's changes by name."""
    return subprocess.run(
        [sys.executable, __file__, str(storage), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, **environment},
    )


def rows_in(storage: Path, study: str = "ablation_peft") -> pd.DataFrame:
    """The rows that a study has written, one a file; no trial twice."""
    trials = pd.read_parquet(storage / study / "trials")
    assert trials.trial_id.is_unique
    assert not trials.duplicated(["phase", "config_hash"]).any()
    return trials.sort_values("trial_id", ignore_index=True)


if __name__ == "__main__":
    start(sys.argv[1:])
