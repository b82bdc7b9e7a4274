"""A study's folder: rows are read back as written, and no file is ever half written."""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import os
import pickle
import re
import shutil
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
from perpeft_ray.store.description import declared_parameters
from perpeft_ray.store.files import whole_file
from perpeft_ray.store.folder import StudyFolder
from perpeft_ray.store.record import TrialRecord
from perpeft_ray.store.schema import EPOCHS, TRIALS, USERS
from perpeft_ray.train.fingerprints import Fingerprints

BEGAN = Fingerprints(tables="aa", images="bb", encoder="cc")


@pytest.fixture
def study(tmp_path: Path) -> StudyConfig:
    return StudyConfig(storage=str(tmp_path), seeds=(0, 1))


@pytest.fixture
def folder(study: StudyConfig) -> StudyFolder:
    return StudyFolder.create(study, BEGAN)


def test_a_complete_trial_is_read_back(folder: StudyFolder, record) -> None:
    written = record("perpeft", "lora", 0.08)
    folder.write_trial(written)
    row = pd.read_parquet(folder.path / "trials").iloc[0]
    for field in dataclasses.fields(TrialConfig):
        value = getattr(written.config, field.name)
        assert pd.isna(row[field.name]) if value is None else row[field.name] == value, field.name
    expected = {
        "study": "ablation_peft",
        "phase": "ablation",
        "status": "COMPLETE",
        "trial_id": written.trial_id,
        "config_hash": written.config.config_hash,
        **{f"{part}_fingerprint": value for part, value in dataclasses.asdict(BEGAN).items()},
        "valid_ndcg_at_20": 0.08,
        "test_ndcg_at_20": 0.08,
        "valid_hr_at_30": 2.5 * 0.08,
        "trainable_fraction": 60 / 4000,
        "peak_memory_mb": 812.0,
        "started_at": written.started_at,
    }
    assert row[list(expected)].to_dict() == expected
    assert pd.isna(row.error)
    assert str(row.started_at.tz) == "UTC"


def test_every_column_of_a_complete_trial_with_all_settings_is_filled(folder, record) -> None:
    study = StudyConfig(data=DataSettings(split="time", sample_users=100))
    folder.write_trial(record("perpeft", "lora", study=study))
    trials = folder.trials()
    assert {name for name in TRIALS.names if trials[name].isna()[0]} == {"error", "bottleneck"}


def test_epochs_and_users_are_read_back(folder: StudyFolder, record) -> None:
    folder.write_trial(record(score=0.08))
    epochs, users = folder.epochs(), folder.users()
    assert (list(epochs.columns), list(users.columns)) == (EPOCHS.names, USERS.names)
    assert epochs.stage.tolist() == [1, 3]
    assert epochs.valid_ndcg_at_20.isna().tolist() == [True, False]
    assert epochs.best_valid_ndcg_at_20[1] == 0.08
    assert users.user_id.tolist() == ["u1", "u2", "u3"]
    assert users.group.fillna(-1).tolist() == [0, 1, -1]
    assert users.test_rank.fillna(-1).tolist() == [7, 2, -1]


@pytest.fixture
def every_status(folder: StudyFolder, record) -> StudyFolder:
    """Trials a to d, and a file left by a killed process."""
    # The first file by name has nulls in most columns: a type guessed from it would be wrong.
    folder.write_trial(record("without_mm", None, status="FAIL", trial_id="a"))
    folder.write_trial(record("global", "ia3", status="PRUNED", trial_id="b"))
    folder.write_trial(record("perpeft", "lora", phase="search", trial_id="c"))
    folder.write_trial(record("perpeft", "iisan", trial_id="d"))
    (folder.path / "trials" / ".e.parquet.0123").write_bytes(b"PAR1 half a file")
    return folder


def test_trials_of_every_status_are_one_table(every_status: StudyFolder) -> None:
    trials = pd.read_parquet(every_status.path / "trials").set_index("trial_id")
    assert trials.status.tolist() == ["FAIL", "PRUNED", "COMPLETE", "COMPLETE"]
    assert trials.error["a"] == "ValueError: the loss is nan"
    metrics = trials.filter(regex=r"^(valid|test)_(hr|ndcg)_at_")
    assert metrics.shape[1] == 12
    assert metrics.notna().sum(axis=1).tolist() == [0, 0, 6, 12]  # a search reads no test
    assert pq.read_table(every_status.path / "trials").schema.equals(TRIALS)
    assert "a" not in set(every_status.epochs().trial_id)


def test_finished_trials_are_complete_or_pruned(every_status: StudyFolder) -> None:
    trials = every_status.trials().set_index("trial_id")
    finished = {(row.phase, row.config_hash) for row in trials.loc[["b", "c", "d"]].itertuples()}
    assert every_status.finished() == finished
    scores = {key: row.score for key, row in every_status.searched().items()}
    assert scores == {trials.config_hash["c"]: 0.1}


def test_a_method_without_encoder_has_no_trainable_fraction(folder: StudyFolder, record) -> None:
    folder.write_trial(record("without_mm", None))
    assert pd.isna(folder.trials().trainable_fraction[0])


@pytest.mark.parametrize("leftover", [False, True])
def test_a_folder_without_trials_has_the_columns(folder: StudyFolder, leftover: bool) -> None:
    if leftover:
        (folder.path / "trials").mkdir()
        (folder.path / "trials" / ".a.parquet.0123").touch()
    assert list(folder.trials().columns) == TRIALS.names
    assert len(folder.trials()) == 0
    assert (folder.finished(), folder.searched()) == (set(), {})


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
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    assert files == [folder.path / "study.json"]


def test_a_kill_between_write_and_rename_leaves_nothing_visible(
    folder: StudyFolder, record
) -> None:
    process = multiprocessing.get_context("fork").Process(
        target=_write_and_die, args=(folder, record("perpeft", "ia3", trial_id="killed"))
    )
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    (left,) = (folder.path / "trials").iterdir()
    assert left.stat().st_size > 0
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


def test_another_process_can_write_to_the_folder(folder: StudyFolder, record) -> None:
    there = pickle.loads(pickle.dumps(folder))  # noqa: S301
    there.write_trial(record())
    assert len(folder.trials()) == 1


def test_study_json_has_settings_fingerprints_versions_and_machine(
    folder: StudyFolder, study: StudyConfig
) -> None:
    description = json.loads((folder.path / "study.json").read_text())
    assert StudyFolder.open(folder.path).config == study
    assert description["fingerprints"] == dataclasses.asdict(BEGAN)
    assert description["versions"]["ray"].startswith("2.")
    assert description["machine"]["cores"] >= 1
    assert description["machine"]["memory_mb"] > 100
    assert description["git_revision"] is None or len(description["git_revision"]) >= 40


def test_parameters_are_scientific_nuisance_or_fixed() -> None:
    study = StudyConfig(loss=LossSettings(conditioning_weight=1.0))
    parameters = declared_parameters(study, ("method", "variant"))
    assert parameters["scientific"] == ["method", "variant"]
    assert parameters["nuisance"] == ["rank", "groups", "seed", "learning_rate"]
    assert "conditioning_weight" in parameters["fixed"]
    names = [field.name for field in dataclasses.fields(TrialConfig)]
    assert sorted(itertools.chain(*parameters.values())) == sorted(names)


def test_the_same_study_is_resumed(folder: StudyFolder, study: StudyConfig) -> None:
    before = (folder.path / "study.json").read_bytes()
    assert StudyFolder.create(study, BEGAN) == folder
    assert (folder.path / "study.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "name", "then", "now"),
    [
        ({"train": TrainSettings(epochs=5)}, "train.epochs", StudyConfig().train.epochs, 5),
        (
            {"search": SearchSettings(ranks=(4,))},
            *("search.ranks", list(StudyConfig().search.ranks), [4]),
        ),
    ],
)
def test_other_settings_are_refused(folder: StudyFolder, study, changed, name, then, now) -> None:
    message = re.escape(
        f"`{name}` must be {then} as in the study that {folder.path} holds, but is {now}; another "
        "`study` name keeps both"
    )
    with pytest.raises(InputError, match=f"^{message}$"):
        StudyFolder.create(replace(study, **changed))


@pytest.mark.parametrize(
    ("now", "changed"),
    [
        (replace(BEGAN, tables="dd"), "the tables of toyshop"),
        (replace(BEGAN, images="dd"), "the images of toyshop"),
        (replace(BEGAN, encoder="dd"), "the encoder toyshop-clip"),
        (
            Fingerprints("dd", "dd", "dd"),
            "the tables of toyshop and the images of toyshop and the encoder toyshop-clip",
        ),
    ],
)
def test_other_data_are_refused(folder: StudyFolder, study: StudyConfig, now, changed) -> None:
    message = re.escape(
        f"`dataset` and `encoder` must stay as they were when the study in {folder.path} began, "
        f"but {changed} changed since; put back what was there, or choose a new --study"
    )
    with pytest.raises(InputError, match=f"^{message}$"):
        StudyFolder.create(study, now)


def test_a_study_without_fingerprints_is_refused(study: StudyConfig) -> None:
    StudyFolder.create(study)
    with pytest.raises(InputError, match="an earlier version; choose a new --study"):
        StudyFolder.create(study, BEGAN)


def test_a_moved_study_is_resumed(folder: StudyFolder, study: StudyConfig) -> None:
    moved = folder.path.parent / "elsewhere"
    moved.mkdir()
    folder.path.rename(moved / "ablation_peft")
    assert StudyFolder.create(replace(study, storage=str(moved))).path == moved / "ablation_peft"


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("{folder}/file", r"`storage` must be a folder, but .* is a file"),
        ("ftp://x", r"can be read and written, but ftp://x/\w+: "),
    ],
)
def test_unusable_storage_is_refused(tmp_path: Path, storage: str, message: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=message):
        StudyFolder.create(StudyConfig(storage=storage.format(folder=tmp_path)))


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
        assert documented == {field.name: str(field.type) for field in schema}


def test_a_study_with_a_setting_that_this_version_lacks_is_refused(tmp_path: Path) -> None:
    folder = StudyFolder.create(StudyConfig(storage=str(tmp_path)))
    description = folder.description
    description["config"]["train"]["warmth"] = 3
    (folder.path / "study.json").write_text(json.dumps(description))
    words = rf"`train\.warmth` must be .* the study in {folder.path} .* another version wrote"
    with pytest.raises(InputError, match=words):
        _ = StudyFolder.open(folder.path).config
    with pytest.raises(InputError, match=words):
        StudyFolder.create(StudyConfig(storage=str(tmp_path)))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[:40], "study.json must be JSON, but is damaged: "),
        (lambda text: "[]", "study.json must have an object `config`, but it is None"),
        (
            lambda text: text.replace('"machine": {', '"machine": 3, "x": {'),
            "study.json must have an object `machine`, but it is 3",
        ),
        (
            lambda text: text.replace('"train": {', '"train": "x", "y": {'),
            "`train` of the study in {path} must be settings, but is 'x'",
        ),
        (
            lambda text: text.replace('"workers": 1', '"workers": "two"'),
            "the study in {path} must have valid settings, but `workers` must be a whole number",
        ),
        (
            lambda text: text.replace('"learning_rate": null', '"learning_rate": []'),
            "the study in {path} must have valid settings, but tuple index out of range",
        ),
        (
            lambda text: text.replace('"memory_gb": 4.0', '"memory_gb": "x"'),
            "the study in {path} must have valid settings, but '>' not supported",
        ),
    ],
)
def test_a_damaged_description_is_named(folder: StudyFolder, damage, words: str) -> None:
    file = folder.path / "study.json"
    file.write_text(damage(file.read_text()))
    with pytest.raises(InputError, match=re.escape(words.format(path=folder.path))) as error:
        _ = StudyFolder.open(folder.path).config
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"PAR1 not a table", b"", "half"])
@pytest.mark.parametrize("part", ["trials", "epochs", "users"])
def test_a_damaged_table_is_named(folder: StudyFolder, record, part: str, content) -> None:
    for method in ("perpeft", "global"):
        folder.write_trial(record(method, "lora", 0.08))
    file = next((folder.path / part).iterdir())
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(InputError, match=f"^{file} must be a readable table, but ") as error:
        getattr(folder, part)()
    assert "\n" not in str(error.value)


def test_a_missing_table_of_users_is_named(folder: StudyFolder, record) -> None:
    written = record("perpeft", "lora", 0.08)
    folder.write_trial(written)
    shutil.rmtree(folder.path / "users")
    missing, row = (
        f"{folder.path}/{part}/{written.trial_id}.parquet" for part in ("users", "trials")
    )
    words = f"{missing} must be a readable table, but is missing; remove {row} and rerun the study"
    with pytest.raises(InputError, match=f"^{re.escape(words)}$"):
        folder.users_of(written.trial_id)
