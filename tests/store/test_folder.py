"""A study's folder: what is written is what is read, and nothing is ever half there."""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import os
import pickle
import re
import signal
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from perpeft_ray.config import (
    DataSettings,
    LossSettings,
    SearchSettings,
    StudyConfig,
    TrainSettings,
    TrialConfig,
)
from perpeft_ray.errors import InputError
from perpeft_ray.store import folder as folder_module
from perpeft_ray.store.files import whole_file
from perpeft_ray.store.folder import StudyFolder, declared_parameters  # type: ignore[attr-defined]  # not public there
from perpeft_ray.store.record import TrialRecord
from perpeft_ray.store.schema import EPOCHS, TRIALS, USERS
from perpeft_ray.train.fingerprints import Fingerprints

BEGAN = Fingerprints(tables="aa", images="bb", encoder="cc")

METRIC_COLUMNS = [
    f"{part}_{name}_at_{k}"
    for part in ("valid", "test")
    for name in ("hr", "ndcg")
    for k in (10, 20, 30)
]


@pytest.fixture
def study(tmp_path: Path) -> StudyConfig:
    return StudyConfig(storage=str(tmp_path), seeds=(0, 1))


@pytest.fixture
def folder(study: StudyConfig) -> StudyFolder:
    return StudyFolder.create(study, BEGAN)


def test_a_complete_trial_reads_back_as_it_was(folder: StudyFolder, record) -> None:
    written = record("perpeft", "lora", 0.08)
    folder.write_trial(written)

    row = pd.read_parquet(folder.path / "trials").iloc[0]
    for field in dataclasses.fields(TrialConfig):
        value = getattr(written.config, field.name)
        assert pd.isna(row[field.name]) if value is None else row[field.name] == value, field.name
    assert row.config_hash == written.config.config_hash
    assert (row.study, row.phase, row.status, row.trial_id) == (
        "ablation_peft",
        "ablation",
        "COMPLETE",
        written.trial_id,
    )
    assert pd.isna(row.error)
    assert row.valid_ndcg_at_20 == row.test_ndcg_at_20 == 0.08
    assert row.valid_hr_at_30 == pytest.approx(0.2)
    assert row.trainable_fraction == 60 / 4000
    assert row.peak_memory_mb == 812.0
    assert row.started_at == written.started_at
    assert str(row.started_at.tz) == "UTC"


def test_every_column_of_a_complete_trial_with_all_settings_is_filled(folder, record) -> None:
    study = StudyConfig(data=DataSettings(split="time", sample_users=100))
    folder.write_trial(record("perpeft", "lora", study=study))
    trials = folder.trials()
    empty = {name for name in TRIALS.names if trials[name].isna()[0]}
    assert empty == {"error", "bottleneck"}


def test_epochs_and_users_read_back(folder: StudyFolder, record) -> None:
    folder.write_trial(record(score=0.08))

    epochs = folder.epochs()
    assert list(epochs.columns) == EPOCHS.names
    assert epochs.stage.tolist() == [1, 3]
    assert epochs.valid_ndcg_at_20.isna().tolist() == [True, False]
    assert epochs.best_valid_ndcg_at_20[1] == 0.08

    users = pq.read_table(folder.path / "users")
    assert users.schema.names == USERS.names
    assert users["user_id"].to_pylist() == ["u1", "u2", "u3"]
    assert users["group"].to_pylist() == [0, 1, None]
    assert users["test_rank"].to_pylist() == [7, 2, None]


def test_all_states_and_stray_files_read_as_one_table(folder: StudyFolder, record) -> None:
    # The first file by name has nulls in most columns: a type guessed from it would be wrong.
    folder.write_trial(record("without_mm", None, status="FAIL", trial_id="a"))
    folder.write_trial(record("global", "ia3", status="PRUNED", trial_id="b"))
    folder.write_trial(record("perpeft", "lora", phase="search", trial_id="c"))
    folder.write_trial(record("perpeft", "iisan", trial_id="d"))
    (folder.path / "trials" / ".e.parquet.0123").write_bytes(b"PAR1 half a file")

    trials = pd.read_parquet(folder.path / "trials").set_index("trial_id")
    assert trials.status.to_dict() == {
        "a": "FAIL",
        "b": "PRUNED",
        "c": "COMPLETE",
        "d": "COMPLETE",
    }
    assert trials.loc["a", "error"] == "ValueError: the loss is nan"
    assert trials.loc[["a", "b"], METRIC_COLUMNS].isna().all(axis=None)
    assert trials.loc["c", [c for c in METRIC_COLUMNS if c.startswith("test")]].isna().all()
    assert trials.loc["d", METRIC_COLUMNS].notna().all()
    assert pq.read_table(folder.path / "trials").schema.equals(TRIALS)
    assert (pd.read_parquet(folder.path / "epochs").trial_id != "a").all()
    assert folder.finished() == {
        (row.phase, row.config_hash) for row in trials.loc[["b", "c", "d"]].itertuples()
    }
    assert {k: row.score for k, row in folder.searched().items() if row.score is not None} == {
        trials.loc["c", "config_hash"]: 0.1
    }


def test_a_method_without_encoder_has_no_trainable_fraction(folder: StudyFolder, record) -> None:
    folder.write_trial(record("without_mm", None))
    assert pd.isna(folder.trials().trainable_fraction[0])


def test_a_folder_without_trials_has_the_columns_and_no_rows(folder: StudyFolder) -> None:
    assert list(folder.trials().columns) == TRIALS.names
    assert len(folder.trials()) == 0
    assert folder.finished() == set()
    assert folder.searched() == {}
    (folder.path / "trials").mkdir()
    (folder.path / "trials" / ".a.parquet.0123").touch()
    assert folder.finished() == set()


def test_a_rerun_replaces_the_failed_row(folder: StudyFolder, record) -> None:
    folder.write_trial(record(status="FAIL"))
    assert folder.finished() == set()
    folder.write_trial(record())
    assert folder.trials().status.tolist() == ["COMPLETE"]


def test_an_error_while_writing_leaves_nothing(folder: StudyFolder, record, monkeypatch) -> None:
    def half(table, path: Path) -> None:
        Path(path).write_bytes(b"PAR1")
        raise OSError("no space left on device")

    monkeypatch.setattr(folder_module.pq, "write_table", half)  # type: ignore[attr-defined]  # not public there
    with pytest.raises(OSError, match="no space"):
        folder.write_trial(record())
    assert [path for path in folder.path.rglob("*") if path.is_file()] == [
        folder.path / "study.json"
    ]


def test_a_kill_between_write_and_rename_leaves_nothing_visible(
    folder: StudyFolder, record
) -> None:
    process = multiprocessing.get_context("fork").Process(
        target=_write_and_die, args=(folder, record("perpeft", "ia3", trial_id="killed"))
    )
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL

    left = list((folder.path / "trials").iterdir())
    assert len(left) == 1
    assert left[0].stat().st_size > 0
    assert folder.finished() == set()
    folder.write_trial(record("perpeft", "lora", trial_id="alive"))
    assert pd.read_parquet(folder.path / "trials").trial_id.tolist() == ["alive"]


def _write_and_die(folder: StudyFolder, record: TrialRecord) -> None:
    rename = Path.replace

    def die_at_the_row(source: Path, target: Path) -> Path:
        if target.parent.name == "trials":
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(source, target)

    Path.replace = die_at_the_row
    folder.write_trial(record)


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    path.write_text("old")
    with whole_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_the_folder_travels_to_other_processes(folder: StudyFolder, record) -> None:
    there = pickle.loads(pickle.dumps(folder))  # noqa: S301
    there.write_trial(record())
    assert len(folder.trials()) == 1


def test_study_json_tells_what_and_where(folder: StudyFolder, study: StudyConfig) -> None:
    description = json.loads((folder.path / "study.json").read_text())
    assert description["config"]["search"]["ranks"] == list(study.search.ranks)
    assert description["versions"]["ray"].startswith("2.")
    assert description["versions"]["torch"]
    assert description["machine"]["cores"] >= 1
    assert description["machine"]["memory_mb"] > 100
    assert description["git_revision"] is None or len(description["git_revision"]) >= 40
    assert StudyFolder.open(folder.path).config == study


def test_parameters_are_scientific_nuisance_or_fixed() -> None:
    parameters = declared_parameters(
        StudyConfig(loss=LossSettings(conditioning_weight=1.0)), ("method", "variant")
    )
    assert parameters["scientific"] == ["method", "variant"]
    assert parameters["nuisance"] == ["rank", "groups", "seed", "learning_rate"]
    assert "conditioning_weight" in parameters["fixed"]
    assert sorted(itertools.chain(*parameters.values())) == sorted(
        field.name for field in dataclasses.fields(TrialConfig)
    )


def test_the_same_study_goes_on_and_another_is_refused(
    folder: StudyFolder, study: StudyConfig, tmp_path: Path
) -> None:
    before = (folder.path / "study.json").read_bytes()
    assert StudyFolder.create(study, BEGAN) == folder
    assert (folder.path / "study.json").read_bytes() == before

    with pytest.raises(InputError) as error:
        StudyFolder.create(replace(study, train=TrainSettings(epochs=5)))
    assert str(error.value) == (
        f"`train.epochs` must be {study.train.epochs} as in the study that {folder.path} holds, "
        "but is 5; another `study` name keeps both"
    )
    ranks = re.escape(str(list(study.search.ranks)))
    with pytest.raises(InputError, match=rf"`search\.ranks` must be {ranks} .* but is \[4\]"):
        StudyFolder.create(replace(study, search=SearchSettings(ranks=(4,))))
    assert (folder.path / "study.json").read_bytes() == before


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (replace(BEGAN, tables="dd"), "the tables of toyshop changed"),
        (replace(BEGAN, images="dd"), "the images of toyshop changed"),
        (replace(BEGAN, encoder="dd"), "the encoder toyshop-clip changed"),
        (
            Fingerprints("dd", "dd", "dd"),
            "the tables of toyshop and the images of toyshop and the encoder toyshop-clip changed",
        ),
    ],
)
def test_a_study_does_not_go_on_with_other_data(
    folder: StudyFolder, study: StudyConfig, now: Fingerprints, told: str
) -> None:
    before = (folder.path / "study.json").read_bytes()
    with pytest.raises(InputError) as error:
        StudyFolder.create(study, now)
    assert str(error.value) == (
        f"`dataset` and `encoder` must stay as they were when the study in {folder.path} began, "
        f"but {told} since; put back what was there, or choose a new --study"
    )
    assert (folder.path / "study.json").read_bytes() == before


def test_study_and_rows_have_the_fingerprints(folder: StudyFolder, record) -> None:
    folder.write_trial(record("perpeft", "lora"))
    assert folder.description["fingerprints"] == dataclasses.asdict(BEGAN)
    row = folder.trials().iloc[0]
    found = (row.tables_fingerprint, row.images_fingerprint, row.encoder_fingerprint)
    assert found == ("aa", "bb", "cc")


def test_a_study_without_fingerprints_is_not_continued(study: StudyConfig) -> None:
    StudyFolder.create(study)
    with pytest.raises(InputError, match="an earlier version; choose a new --study"):
        StudyFolder.create(study, BEGAN)


def test_a_study_that_was_moved_goes_on(folder: StudyFolder, study: StudyConfig) -> None:
    moved = folder.path.parent / "elsewhere"
    moved.mkdir()
    folder.path.rename(moved / "ablation_peft")
    assert StudyFolder.create(replace(study, storage=str(moved))).path == moved / "ablation_peft"


def test_storage_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"`storage` must be a folder, but .* is a file"):
        StudyFolder.create(StudyConfig(storage=str(tmp_path / "file")))
    with pytest.raises(InputError, match=r"can be read and written, but ftp://x/\w+: "):
        StudyFolder.create(StudyConfig(storage="ftp://x"))
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "ablation_peft").touch()
    with pytest.raises(InputError, match="`storage` must be a folder that can be written"):
        StudyFolder.create(StudyConfig(storage=str(tmp_path / "good")))


def test_only_a_study_opens(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must have study\.json, but .* has none"):
        StudyFolder.open(tmp_path)


def test_readme_documents_every_column() -> None:
    readme = (Path(__file__).parents[2] / "results" / "README.md").read_text()
    sections = {part.split("\n")[0]: part for part in readme.split("\n## ")}
    for title, schema in (("`trials/`", TRIALS), ("`epochs/`", EPOCHS), ("`users/`", USERS)):
        (section,) = (text for name, text in sections.items() if name.startswith(title))
        rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
        documented = {
            name.strip(" `"): kind.strip() for names, kind in rows for name in names.split(",")
        }
        expected = {field.name: str(field.type) for field in schema}
        assert documented == expected
