"""In a submitted Ray job, results must go where the job's deletion does not reach."""

from __future__ import annotations

import json
import logging
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

from perpeft_ray.errors import InputError
from perpeft_ray.study.check import check_storage_outlives_job, submission_id

ROOT = Path(__file__).parents[2]


@pytest.fixture
def in_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that Ray's job supervisor gives an entrypoint."""
    config = {"runtime_env": {}, "metadata": {"job_submission_id": "my-study"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))


@pytest.mark.usefixtures("in_job")
def test_a_job_needs_an_absolute_storage() -> None:
    with pytest.raises(InputError) as told:
        check_storage_outlives_job("results")
    assert str(told.value) == (
        "`storage` must be an absolute path or a URI in a Ray job (the working directory of job "
        "my-study is a copy that Ray deletes), but is 'results'"
    )
    check_storage_outlives_job("/mnt/results")
    check_storage_outlives_job("s3://bucket/results")


def test_elsewhere_a_relative_storage_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert submission_id() is None
    check_storage_outlives_job("results")


@pytest.mark.parametrize("include_gitignore", [True, False])
def test_what_a_job_uploads_is_small_and_enough(tmp_path: Path, include_gitignore: bool) -> None:
    """Ray's own packing of this clone, with whatever lies in it on this machine."""
    package = tmp_path / "package.zip"
    create_package(
        str(ROOT),
        package,
        include_gitignore=include_gitignore,
        excludes=[],
        logger=logging.getLogger(__name__),
    )
    assert package.stat().st_size < 4e6  # of Ray's 512 MB; the toyshop's encoder is 0.9 MB of it
    with zipfile.ZipFile(package) as archive:
        names = set(archive.namelist())
    assert {"studies/ablation_peft.py", "perpeft_ray/cli/study.py"} <= names
    assert "perpeft_ray/encoder/toyshop_clip/model.safetensors" in names
    folders = {name.partition("/")[0] for name in names}
    assert folders.isdisjoint({".git", ".venv", "results", "tests", ".mypy_cache", ".hypothesis"})
    assert not any("__pycache__" in name for name in names)
