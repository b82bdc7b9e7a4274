"""A study's trials trained, continued and exported on machines that share only its URI."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import pandas as pd
import pytest

import perpeft_ray
from perpeft_ray.cli.main import perpeft
from perpeft_ray.errors import StudyStoppedError
from perpeft_ray.store import lease
from perpeft_ray.store.folder import StudyFolder
from perpeft_ray.store.lease import Holder
from perpeft_ray.study.run import run_study
from tests.models.conftest import new_study, trials_of


def test_three_machines(s3, shop, tmp_path, monkeypatch):
    storage = f"{s3}/results"

    def on(machine: str) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))

    alone = new_study(shop, tmp_path / "alone")
    expected = [trials_of(alone)(method) for method in ("perpeft", "without_group_negatives")]

    on("first")
    first = trials_of(new_study(shop, storage))("perpeft")
    on("second")
    study = new_study(shop, storage)
    assert study.trials().trial_id.tolist() == [first]
    second = trials_of(study)("without_group_negatives")
    assert [first, second] == expected
    for trial_id in expected:
        pd.testing.assert_frame_equal(study.users_of(trial_id), alone.users_of(trial_id))
    # The second machine has taken stage 1 from the URI.
    shared = pd.read_parquet(study.path / "epochs" / f"{second}.parquet").query("stage == 1").shared
    assert shared.all()

    on("third")
    perpeft(["export", f"{storage}/small", str(tmp_path / "model")])
    perpeft(["export", str(alone.path), str(tmp_path / "expected")])
    for history in (["i3", "i5"], ["i7"]):
        found = perpeft_ray.load(tmp_path / "model").recommend(history, 5)
        assert found == perpeft_ray.load(tmp_path / "expected").recommend(history, 5)
    assert StudyFolder.open(f"{storage}/small").trials().shape[0] == 2


def test_a_process_whose_study_was_taken_over_uploads_nothing(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    monkeypatch.setattr("perpeft_ray.study.runtime.ray_for", lambda study, _: nullcontext(study))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    config = new_study(shop, tmp_path / "unused").config
    config = replace(config, storage=(tmp_path / "results").as_uri(), methods=("without_mm",))
    there = tmp_path / "results" / "small"
    other = Holder("elsewhere", 7, "2026-01-01", "another")

    def taken_over(study: Any, progress: Any) -> None:
        time.sleep(0.5)
        assert not any(held.lost for held in study.leases)
        (study.folder.path / "optuna.journal").write_text("old")
        (there / "optuna.journal").write_text("newer")
        (there / "new").write_text(json.dumps(asdict(other)))
        (there / "new").replace(there / "owner.json")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for held in study.leases:
                held.look()
            time.sleep(0.02)

    with pytest.raises(StudyStoppedError, match=f"the study in {there.as_uri()} after 60 s"):
        run_study(config, taken_over)
    assert (there / "optuna.journal").read_text() == "newer"
    assert json.loads((there / "owner.json").read_text()) == asdict(other)


@pytest.fixture
def reader(shop, tmp_path, monkeypatch):
    """A study at a URI whose own process uploads a newer journal during every command."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "study"))
    study = new_study(shop, (tmp_path / "results").as_uri())
    trials_of(study)("perpeft")
    journal = study.path / "optuna.journal"
    journal.write_text("old")
    study.keep()
    keep = StudyFolder.keep

    def keep_later(folder: StudyFolder, *made: str) -> None:
        journal.write_text("newer")
        keep(study)
        keep(folder, *made)

    monkeypatch.setattr(StudyFolder, "keep", keep_later)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "reader"))
    return study


@pytest.mark.parametrize(
    ("command", "made"),
    [
        (["tables", "STUDY"], {"tables"}),
        (["report", "STUDY"], {"tables", "figures", "report.html"}),
        (["explain", "item", "STUDY", "i3"], {"explain"}),
        (["pack", "STUDY"], {"data", "weights"}),
    ],
)
def test_a_command_uploads_what_it_made_and_nothing_else(reader, tmp_path, command, made):
    there = tmp_path / "results" / "small"
    before = {path.name for path in there.iterdir()}
    perpeft([reader.uri if word == "STUDY" else word for word in command])
    assert {path.name for path in there.iterdir()} - before == made
    assert (there / "optuna.journal").read_text() == "newer"
