"""Trials that were stopped in mid-epoch go on as if nothing had happened."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perpeft_ray.config import TrialConfig
from perpeft_ray.data.places import subfolders
from perpeft_ray.train import fit
from perpeft_ray.train.outcome import EpochRecord, TrialOutcome
from perpeft_ray.train.snapshot import read_snapshot
from perpeft_ray.train.trial import run_trial
from perpeft_ray.train.workspace import Workspace

RANKS = ("group", "test_group", "valid_rank", "test_rank")


class StoppedError(Exception):
    """What stands for a kill."""


@pytest.fixture
def stop_in(monkeypatch):
    """Make training stop in the middle of an epoch; None: no longer."""
    real = fit.train_epoch  # type: ignore[attr-defined]  # not public there

    def stop(last: int | None) -> None:
        def train_epoch(state: Any, data: Any, epoch: int, *rest: Any) -> float:
            loss = real(state, data, epoch, *rest)  # the weights have moved already
            if epoch == last:
                raise StoppedError
            return loss

        monkeypatch.setattr(fit, "train_epoch", train_epoch)

    return stop


def _run(
    config: TrialConfig, workspace: Workspace, checkpoints: Path | str | None, **kwargs: Any
) -> tuple[TrialOutcome, list[EpochRecord]]:
    records: list[EpochRecord] = []
    outcome = run_trial(
        config, workspace, records.append, test=True, checkpoints=checkpoints, **kwargs
    )
    return outcome, records


def _assert_same(
    found: tuple[TrialOutcome, list[EpochRecord]], expected: tuple[TrialOutcome, list[EpochRecord]]
) -> None:
    for name in RANKS:
        ranks = getattr(found[0].users, name)
        assert np.array_equal(ranks, getattr(expected[0].users, name)), name
    for name in ("selected_epoch", "valid", "test", "trainable_parameters"):
        assert getattr(found[0], name) == getattr(expected[0], name), name
    measured = [
        [dataclasses.replace(r, seconds=0.0, shared=False) for r in run[1]]
        for run in (found, expected)
    ]
    assert measured[0] == measured[1]


@pytest.mark.parametrize(
    ("method", "variant", "mode", "stops"),
    [
        ("perpeft", "lora", "sequential", (2, 4)),  # once in each stage
        ("perpeft", "iisan", "parallel", (5,)),
        ("global", "lora", "sequential", (4,)),
        ("user_level_2", "ia3", "sequential", (5,)),
    ],
)
def test_a_trial_goes_on_with_the_result_of_an_unbroken_run(
    workspace, make_trial, tmp_path, stop_in, method, variant, mode, stops
):
    config = make_trial(method, variant, mode=mode, epochs=2, personal_epochs=4, learning_rate=1e-2)
    unbroken = _run(config, workspace.with_nothing_trained(tmp_path / "unbroken"), None)
    fresh = workspace.with_nothing_trained(tmp_path / "broken")
    checkpoints = tmp_path / "checkpoints" / "trial"
    for epoch in stops:
        stop_in(epoch)
        with pytest.raises(StoppedError):
            _run(config, fresh, checkpoints)
    trained: list[int] = []
    stop_in(None)
    again = fit.train_epoch  # type: ignore[attr-defined]  # not public there

    def count(state: Any, data: Any, epoch: int, *rest: Any) -> float:
        trained.append(epoch)
        return again(state, data, epoch, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "train_epoch", count)
        resumed = _run(config, fresh, checkpoints)
    assert trained == list(range(stops[-1], 7))
    _assert_same(resumed, unbroken)
    assert [record.epoch for record in resumed[1]] == list(range(1, 7))
    assert not checkpoints.exists()
    assert not any(path.name.endswith(".unfinished") for path in fresh.unfinished.iterdir())


def test_one_file_has_the_latest_and_the_best_epoch(workspace, make_trial, tmp_path):
    config = make_trial(epochs=1, personal_epochs=6, learning_rate=3e-2)
    checkpoints = tmp_path / "trial"
    best: dict[int, float] = {}

    def look(record: EpochRecord) -> None:
        if record.stage == 1:
            return
        assert record.valid is not None
        best[record.epoch] = record.valid.ndcg_at_20
        [file] = checkpoints.glob("*/stage.safetensors")
        kept = read_snapshot(file)
        assert kept is not None
        assert kept.progress.best is not None
        assert kept.progress.epochs[-1] == record
        assert kept.progress.best.epoch == max(best, key=lambda epoch: best[epoch])
        names = {path.name for path in checkpoints.rglob("*") if path.is_file()}
        assert names == {"grouping.safetensors", "stage.safetensors"}

    run_trial(config, workspace, look, test=False, checkpoints=checkpoints)
    assert len(best) == 6
    assert max(best, key=lambda epoch: best[epoch]) < 7  # the best was not always the latest


def test_half_a_checkpoint_and_those_of_other_settings_are_passed_over(
    workspace, make_trial, tmp_path, stop_in
):
    config = make_trial(personal_epochs=3)
    checkpoints = tmp_path / "trial"
    unbroken = _run(config, workspace.with_nothing_trained(tmp_path / "a"), None)
    fresh = workspace.with_nothing_trained(tmp_path / "b")
    for settings in (make_trial(personal_epochs=3, learning_rate=5e-2), config):
        stop_in(3)
        with pytest.raises(StoppedError):
            _run(settings, fresh, checkpoints)
    stages = list(checkpoints.glob("*/stage.safetensors"))
    assert len(stages) == 2  # of either settings
    for stage in stages:
        stage.with_name(".stage.safetensors.0123").write_bytes(b"half")
    stop_in(None)
    _assert_same(_run(config, fresh, checkpoints), unbroken)


@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_checkpoints_at_a_uri(workspace, make_trial, tmp_path, stop_in, scheme, request):
    root = request.getfixturevalue("s3") if scheme == "s3" else f"{scheme}://{tmp_path}"
    config = make_trial("global", personal_epochs=3)
    unbroken = _run(config, workspace.with_nothing_trained(tmp_path / "a"), None)
    fresh = workspace.with_nothing_trained(tmp_path / "b")
    stop_in(4)
    with pytest.raises(StoppedError):
        _run(config, fresh, f"{root}/trial")
    assert (tmp_path / "trial").exists() == (scheme == "file")
    stop_in(None)
    resumed = _run(config, fresh, f"{root}/trial")
    _assert_same(resumed, unbroken)
    assert [r.epoch for r in resumed[1] if r.stage == 3] == [2, 3, 4]
    assert "trial" not in subfolders(root)
