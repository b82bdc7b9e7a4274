"""A study's folder on another machine: what is exported from it is what the study would export."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import perpeft_ray
from perpeft_ray.cli.main import perpeft
from perpeft_ray.errors import InputError
from perpeft_ray.models.loaded import Recommendation
from perpeft_ray.models.portable import open_workspace, pack
from perpeft_ray.store.folder import StudyFolder
from perpeft_ray.store.weights import keep_weights
from perpeft_ray.study.plan import TrialSpec
from perpeft_ray.study.run import run_study
from tests.encoder.tiny_models import write_tiny_model
from tests.models.conftest import new_study, trials_of
from tests.one_trial import run_spec

HISTORY = ["i3", "i5"]


@dataclass(frozen=True)
class Machine:
    """A folder with a study's data, encoder and storage, and what its model recommends."""

    root: Path
    folder: StudyFolder
    expected: list[Recommendation]

    def exported(self, folder: Path, out: Path) -> list[Recommendation]:
        """What a model recommends that is exported from a copy of the study."""
        perpeft(["export", str(folder), str(out), "--with-encoder"])
        return perpeft_ray.load(out).recommend(HISTORY, 5)


@pytest.fixture(scope="module")
def trained(shop, tmp_path_factory):
    """Trains the study of a machine with an encoder once; returns the machine and a copy of it."""

    @functools.cache
    def make(encoder: str) -> tuple[Machine, Path]:
        root = tmp_path_factory.mktemp("machine") / "machine"
        shutil.copytree(shop, root / "data")
        if encoder != "toyshop-clip":
            encoder = write_tiny_model(encoder, root / "encoder")
        folder = new_study(root / "data", root / "results", encoder)
        trials_of(folder)("perpeft")
        trials_of(folder)("without_mm", None)
        perpeft(["export", str(folder.path), str(root / "model")])
        expected = perpeft_ray.load(root / "model").recommend(HISTORY, 5)
        return Machine(root, folder, expected), shutil.copytree(root, root.with_name("copy"))

    return make


@pytest.fixture
def machine(request, trained):
    """A machine as training left it; the test may remove it."""
    made, copy = trained(getattr(request, "param", "toyshop-clip"))
    shutil.rmtree(made.root, ignore_errors=True)
    shutil.copytree(copy, made.root)
    return made


@pytest.mark.parametrize("machine", ["toyshop-clip", "pair"], indirect=True)
def test_a_packed_study_works_without_the_machine_that_ran_it(machine, tmp_path, capsys):
    perpeft(["pack", str(machine.folder.path)])
    assert "and the weights of 2 trials" in capsys.readouterr().err
    copy = tmp_path / "elsewhere" / "study"
    shutil.copytree(machine.folder.path, copy)
    shutil.rmtree(machine.root)
    assert machine.exported(copy, tmp_path / "model") == machine.expected
    perpeft(["explain", "user", str(copy), "u9"])
    perpeft(["explain", "item", str(copy), "i5"])
    page = (copy / "explain" / "item-i5.html").read_text()
    assert page.count("data:image/png;base64,") >= 3
    # Once more there, and from there.
    assert pack(StudyFolder.open(copy))[0] == 2
    assert machine.exported(copy, tmp_path / "again") == machine.expected


def test_a_study_that_cannot_be_packed_is_the_systems_error(machine):
    (machine.folder.path / "weights").touch()
    with pytest.raises(OSError, match=str(machine.folder.path / "weights")):
        perpeft(["pack", str(machine.folder.path)])


def test_a_copy_alone_has_its_weights(machine, tmp_path):
    """As a run of the study leaves it, with links to the cache; data and encoder are there yet."""
    _, workspace = open_workspace(machine.folder)
    assert keep_weights(machine.folder, workspace) == (2, 0)
    kept = sorted((machine.folder.path / "weights").rglob("*.safetensors"))
    assert len(kept) == 2 + 1  # two trials and one stage 1
    assert all(file.stat().st_nlink == 2 for file in kept)
    copy = tmp_path / "elsewhere" / "study"
    shutil.copytree(machine.folder.path, copy)
    shutil.rmtree(machine.root / "results")
    assert machine.exported(copy, tmp_path / "model") == machine.expected


def test_what_a_copy_lacks_is_named_with_a_remedy(machine, tmp_path):
    copy = tmp_path / "elsewhere" / "study"
    shutil.copytree(machine.folder.path, copy)
    asks = r"run `perpeft pack` on .* copy its folder again"
    with pytest.raises(InputError, match=rf"must have the weights of \S+ .*{asks}"):
        machine.exported(copy, tmp_path / "model")
    shutil.rmtree(machine.root / "data")
    with pytest.raises(InputError, match=rf"parquet:{machine.root}/data.*{asks}"):
        machine.exported(copy, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_weights_of_other_data_are_refused(machine, tmp_path):
    pack(machine.folder)
    (machine.folder.path / "data" / "images" / "5.png").write_bytes(b"another image")
    with pytest.raises(InputError, match=r"the images of .* changed since; put back what"):
        machine.exported(machine.folder.path, tmp_path / "model")


def test_a_study_of_relative_paths_is_found_from_any_folder(shop, tmp_path, monkeypatch):
    shutil.copytree(shop, tmp_path / "data")
    write_tiny_model("clip", tmp_path / "encoder")
    (tmp_path / "elsewhere").mkdir()
    config = dataclasses.replace(
        new_study(shop, tmp_path / "unused").config,
        dataset="parquet:data",
        encoder="./encoder",
        storage="results",
        methods=("perpeft", "without_mm"),
    )
    monkeypatch.setattr("perpeft_ray.study.runtime.ray_for", lambda study, _: nullcontext(study))
    monkeypatch.chdir(tmp_path)
    run_study(config, train_one)
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder = StudyFolder.open(tmp_path / "results" / "small")
    made = folder.config
    assert made.dataset == f"parquet:{tmp_path}/data"
    assert made.encoder == str(tmp_path / "encoder")
    assert made.storage == str(tmp_path / "results")
    perpeft(["export", str(folder.path), "model", "--method", "without_mm"])
    assert perpeft_ray.load("model").recommend(HISTORY, 3)


@pytest.mark.parametrize("at_uri", [False, True])
def test_a_study_resumes_without_the_cache_of_the_first_run(
    shop, tmp_path, monkeypatch, capsys, at_uri
):
    storage = (tmp_path / "results").as_uri() if at_uri else str(tmp_path / "results")
    config = dataclasses.replace(
        new_study(shop, tmp_path / "unused").config, storage=storage, methods=("without_mm",)
    )
    monkeypatch.setattr("perpeft_ray.study.runtime.ray_for", lambda study, _: nullcontext(study))
    for machine, word in (("first", "study"), ("second", "resumes")):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        run_study(config, lambda *_: None)
        assert f"{word} small: parquet:{shop} with toyshop-clip" in capsys.readouterr().err


def train_one(study: Any, progress: Any) -> None:
    """A question that trains one trial of the ablation in this process."""
    trial = study.config.trial("without_mm", seed=0, learning_rate=1e-3)
    run_spec(study, TrialSpec("ablation", trial), lambda result: None)


def test_a_stopped_run_leaves_weights_in_the_studys_folder(shop, tmp_path, monkeypatch):
    config = new_study(shop, tmp_path / "results").config
    config = dataclasses.replace(config, study="run", methods=("perpeft", "without_mm"))
    monkeypatch.setattr("perpeft_ray.study.runtime.ray_for", lambda study, _: nullcontext(study))

    def stopped(study: Any, progress: Any) -> None:
        train_one(study, progress)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(config, stopped)
    kept = tmp_path / "results" / "run" / "weights" / "trials"
    assert len(list(kept.glob("*.safetensors"))) == 1
