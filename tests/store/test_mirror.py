"""A folder at a URI: which files are copied, and what two machines see."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from perpeft_ray.config import StudyConfig
from perpeft_ray.errors import InputError
from perpeft_ray.store.folder import StudyFolder, storage_folder
from perpeft_ray.store.mirror import Mirror


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def _files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    return Mirror(tmp_path / "here", (tmp_path / "there").as_uri())


def test_differing_files_are_copied_both_ways(mirror: Mirror, tmp_path: Path) -> None:
    there = tmp_path / "there"
    for name in ("a", "deep/er/b", "trials/c", ".lock", "deep/.d"):
        _write(mirror.here / name, f"1 {name}")
    mirror.send_changed(besides=["trials"])
    assert _files(there) == {"a": "1 a", "deep/er/b": "1 deep/er/b"}
    mirror.send(["trials/c"])

    other = replace(mirror, here=tmp_path / "other")
    other.fetch("trials")
    assert _files(other.here) == {"trials/c": "1 trials/c"}
    other.fetch()
    assert _files(other.here) == _files(there)

    _write(other.here / "a", "2 a")  # as long as before
    other.send_changed(besides=[])
    mirror.fetch()
    assert _files(mirror.here)["a"] == "2 a"
    assert _files(mirror.here)[".lock"] == "1 .lock"


def test_equal_files_are_not_copied(mirror: Mirror, tmp_path: Path) -> None:
    _write(mirror.here / "a", "1")
    mirror.send(["a"])
    before = (tmp_path / "there" / "a").stat().st_ino
    mirror.send_changed(besides=[])
    assert (tmp_path / "there" / "a").stat().st_ino == before
    here = (mirror.here / "a").stat().st_ino
    mirror.fetch()
    assert (mirror.here / "a").stat().st_ino == here


def test_an_empty_store_gives_no_files(mirror: Mirror) -> None:
    mirror.fetch()
    mirror.fetch("trials")
    assert not mirror.here.exists()


def test_a_store_without_times(tmp_path: Path) -> None:
    """fsspec's stores give no modification times."""
    mirror = Mirror(tmp_path / "here", "fsspec+memory://perpeft-mirror")
    _write(mirror.here / "a", "1")
    mirror.send_changed(besides=[])
    other = replace(mirror, here=tmp_path / "other")
    other.fetch()
    assert _files(other.here) == {"a": "1"}
    _write(mirror.here / "a", "2")
    mirror.send_changed(besides=[])
    other.fetch()
    assert _files(other.here) == {"a": "2"}


def test_an_object_store(s3: str, tmp_path: Path) -> None:
    """Its modification times are whole seconds, and its folders are only names."""
    mirror = Mirror(tmp_path / "here", f"{s3}/study")
    for name in ("a", "trials/c"):
        _write(mirror.here / name, f"1 {name}")
    mirror.send_changed(besides=[])
    other = replace(mirror, here=tmp_path / "other")
    other.fetch()
    assert _files(other.here) == _files(mirror.here)
    _write(other.here / "a", "2 a")
    other.send_changed(besides=[])
    _write(mirror.here / "a", "older")
    mirror.fetch()
    assert _files(mirror.here)["a"] == "2 a"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Makes this process one of a machine of its own, with nothing on it."""

    def on(name: str) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))

    on("first")
    return on


def test_rows_written_on_one_machine_are_read_on_another(record, machine, tmp_path: Path) -> None:
    config = StudyConfig(storage=(tmp_path / "store").as_uri() + "/")
    first = StudyFolder.create(config)
    assert first.path == tmp_path / "first/perpeft-ray" / first.path.parts[-2] / config.study
    machine("second")
    second = replace(first, path=storage_folder(config.storage) / config.study)
    second.write_trial(record(trial_id="one"))
    second.write_trial(record(trial_id="two", status="FAIL"))
    assert sorted(first.trials().trial_id) == ["one", "two"]
    assert first.searched() == second.searched()
    second.write_trial(record(trial_id="two"))
    assert first.trials().status.tolist() == ["COMPLETE", "COMPLETE"]
    first.keep()  # what it has of trials is not newer than what is there
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "store" / config.study / "trials"), second.trials()
    )


def test_the_uri_is_the_study(record, machine, tmp_path: Path) -> None:
    config = StudyConfig(storage=(tmp_path / "store").as_uri())
    folder = StudyFolder.create(config)
    folder.write_trial(record(trial_id="one"))
    _write(folder.path / "optuna.journal", "old")
    folder.keep()
    _write(folder.path / "optuna.journal", "newer, but never sent")
    _write(folder.path / "trials" / "stray.parquet", "no table")
    again = StudyFolder.create(config)
    assert (again.path / "optuna.journal").read_text() == "old"
    assert again.trials().trial_id.tolist() == ["one"]
    with pytest.raises(InputError, match=r"`train\.batch_size` must be 64 as in the study that"):
        StudyFolder.create(replace(config, train=replace(config.train, batch_size=7)))

    machine("reader")
    opened = StudyFolder.open(config.storage + "/ablation_peft")
    assert opened.trials().trial_id.tolist() == ["one"]
    assert opened.shown_path(opened.path / "report.html") == f"{opened.uri}/report.html"
    assert opened.path != storage_folder(config.storage) / "ablation_peft"  # a study may run there
    with pytest.raises(InputError, match=r"must have study\.json, but file:.*/none has none"):
        StudyFolder.open(config.storage + "/none")


@pytest.fixture
def running(machine, tmp_path: Path) -> StudyFolder:
    """A study at a URI, as its own process sees it; the test is on a reader's machine."""
    folder = StudyFolder.create(StudyConfig(storage=(tmp_path / "store").as_uri()))
    _write(folder.path / "optuna.journal", "old")
    _write(folder.path / "report.html", "old")
    folder._mirror.send_changed(besides=[])
    machine("reader")
    return folder


def test_a_reader_uploads_only_what_it_made(running: StudyFolder, tmp_path: Path) -> None:
    reader = StudyFolder.open(running.uri)
    _write(running.path / "optuna.journal", "newer")
    running.keep()
    _write(reader.path / "report.html", "the reader's")
    _write(reader.path / "tables" / "cost.md", "the reader's")
    reader.keep("tables", "report.html")
    there = _files(tmp_path / "store" / running.path.name)
    assert there["optuna.journal"] == "newer"
    assert there["report.html"] == there["tables/cost.md"] == "the reader's"


def test_a_study_leaves_what_readers_made(running: StudyFolder, tmp_path: Path) -> None:
    reader = StudyFolder.open(running.uri)
    _write(reader.path / "report.html", "the reader's")
    reader.keep("report.html")
    running.keep()
    there = _files(tmp_path / "store" / running.path.name)
    assert there["report.html"] == "the reader's"


def test_the_file_of_the_holder_is_not_fetched(running: StudyFolder, tmp_path: Path) -> None:
    _write(tmp_path / "store" / running.path.name / "owner.json", "the process at the URI")
    for folder in (StudyFolder.open(running.uri), StudyFolder.create(running.config)):
        assert not (folder.path / "owner.json").exists()


def _run_again(folder: StudyFolder) -> StudyFolder:
    """The study deleted at its URI, and begun again under its name."""
    shutil.rmtree(folder.uri.removeprefix("file://"))
    return StudyFolder.create(replace(folder.config, seeds=(7,)))


@pytest.mark.parametrize("reopen", [True, False])
def test_a_reader_forgets_a_study_that_was_deleted(
    running: StudyFolder, record, reopen: bool
) -> None:
    running.write_trial(record(trial_id="old"))
    reader = StudyFolder.open(running.uri)
    _write(reader.path / "explain" / "old.html", "of the old study")
    assert reader.trials().trial_id.tolist() == ["old"]
    _run_again(running).write_trial(record(trial_id="new"))
    reader = StudyFolder.open(running.uri) if reopen else reader
    assert reader.trials().trial_id.tolist() == ["new"]
    assert reader.config.seeds == (7,)
    assert not (reader.path / "explain").exists()


def test_a_study_that_was_deleted_does_not_open(running: StudyFolder) -> None:
    StudyFolder.open(running.uri)
    shutil.rmtree(running.uri.removeprefix("file://"))
    with pytest.raises(InputError, match=r"must have study\.json, but file:.* has none"):
        StudyFolder.open(running.uri)


def test_names_that_lead_outside_are_not_fetched(mirror: Mirror, tmp_path: Path) -> None:
    from perpeft_ray.store import mirror as module

    assert module._is_plain(["a", "b"])
    for name in ("../a", "a/../../b", "/a", "a//b", ".hidden/a"):
        assert not module._is_plain(name.split("/")), name
    assert os.sep == "/"
