"""What is checked before anything starts."""

from __future__ import annotations

import json
import logging
import zipfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from ray._private.runtime_env.packaging import create_package

from perpeft_ray.config import DataSettings, GroupingSettings, SearchSettings, StudyConfig
from perpeft_ray.data.interactions import Dataset
from perpeft_ray.data.split import Split, split_dataset
from perpeft_ray.errors import InputError
from perpeft_ray.study import check
from perpeft_ray.study.check import (
    check_histories,
    check_storage_outlives_job,
    check_study,
    check_trackers,
    warn_of_empty_items,
)

ROOT = Path(__file__).parents[2]


def of_items(**columns: list[str | None]) -> Dataset:
    """A data set with these items, of no interactions."""
    return Dataset("parquet:shop", Path(), pd.DataFrame(), pd.DataFrame(columns), "", "")


def test_items_without_title_and_image_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    warn_of_empty_items(of_items(title=[None, "lamp"], image=[None, None]))
    warn_of_empty_items(of_items(title=[None, ""], image=[None, "a.jpg"]))
    assert capsys.readouterr().err == ""
    warn_of_empty_items(of_items(title=[None, ""], image=[None, None]))
    assert "no item has a title or an image" in capsys.readouterr().err


def split(**histories: str) -> Split:
    """Of users with histories of one-letter items, of which there are a, b and c."""
    rows = [(user, item, time) for user, h in histories.items() for time, item in enumerate(h)]
    return split_dataset(
        Dataset(
            uri="parquet:shop",
            root=Path(),
            interactions=pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]),
            items=pd.DataFrame({"item_id": ["a", "b", "c"]}),
            fingerprint="",
            items_fingerprint="",
        )
    )


@pytest.mark.parametrize(
    ("histories", "who"),
    [
        ({"anne": "abca", "bot": "abcab"}, "user 'bot' has"),
        ({"x": "abcab", "y": "cbaab"}, "user 'x' and 1 more have"),
    ],
)
def test_users_who_have_trained_on_every_item_are_named(
    histories: dict[str, str], who: str
) -> None:
    with pytest.raises(InputError) as error:
        check_histories(split(**histories))
    assert str(error.value) == (
        "`dataset` must leave every user an item without training interaction, but "
        f"{who} all items (3); leave out their interactions"
    )


def test_every_item_with_validation_and_test_is_fine() -> None:
    check_histories(split(anne="aabc", ben="ab"))


WITHOUT_TEXT = StudyConfig(methods=("perpeft", "without_text"))
MANY_GROUPS = StudyConfig(grouping=GroupingSettings(2000))
ONE_USER = StudyConfig(data=DataSettings(sample_users=1))


@pytest.mark.parametrize(
    ("study", "users", "has_images", "message"),
    [
        (MANY_GROUPS, 938, True, "`grouping.groups` must be between 1 and the number of users "),
        (StudyConfig(), 1, True, "`search.groups` must be between 1 and the number of users (1), "),
        (ONE_USER, 1, True, "`data.sample_users` must be at least the number of groups ("),
        (StudyConfig(search=SearchSettings(trials=2)), 9, True, "`search.trials` must be at least"),
        (WITHOUT_TEXT, 9, False, "`methods` without_text needs an encoder of titles and images"),
        (MANY_GROUPS, 2000, True, None),
        (MANY_GROUPS, None, True, None),
        (WITHOUT_TEXT, 9, True, None),
    ],
)
def test_rules_between_a_study_and_its_data(
    study: StudyConfig, users: int | None, has_images: bool, message: str | None
) -> None:
    if message is None:
        check_study(study, users, has_images=has_images)
        return
    with pytest.raises(InputError) as error:
        check_study(study, users, has_images=has_images)
    assert str(error.value).startswith(message)


def test_a_tracker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_trackers(StudyConfig())
    monkeypatch.setattr(check, "find_spec", lambda _: None)
    with pytest.raises(InputError) as error:
        check_trackers(replace(StudyConfig(), log=("mlflow",)))
    assert str(error.value) == (
        "`log` must name installed packages, but mlflow is not: pip install 'perpeft-ray[mlflow]'"
    )


def test_a_job_needs_a_storage_outside_its_working_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    check_storage_outlives_job("results")
    # As Ray's job supervisor sets it.
    config = {"runtime_env": {}, "metadata": {"job_submission_id": "my-study"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    check_storage_outlives_job("/mnt/results")
    check_storage_outlives_job("s3://bucket/results")
    with pytest.raises(InputError) as error:
        check_storage_outlives_job("results")
    assert str(error.value) == (
        "`storage` must be an absolute path or a URI in a Ray job (the working directory of job "
        "my-study is a copy that Ray deletes), but is 'results'"
    )


@pytest.mark.parametrize("include_gitignore", [True, False])
def test_a_job_uploads_a_small_package_with_all_it_needs(
    tmp_path: Path, include_gitignore: bool
) -> None:
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
