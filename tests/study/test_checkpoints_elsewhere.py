"""A study's checkpoints in a place of their own, by path or by URI."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perpeft_ray.config import StudyConfig, TrainSettings
from perpeft_ray.data.places import remove_folder, subfolder, subfolders
from perpeft_ray.store.folder import StudyFolder
from perpeft_ray.study.plan import TrialSpec
from perpeft_ray.study.trainable import Study
from perpeft_ray.train.trial import run_trial
from perpeft_ray.train.workspace import prepare
from tests.one_trial import run_spec
from tests.small_shop import write_small_shop


class KilledError(Exception):
    pass


@pytest.mark.parametrize("as_uri", [False, True])
def test_a_stopped_trial_goes_on_from_where_the_study_says(tmp_path: Path, as_uri: bool) -> None:
    shop = write_small_shop(tmp_path / "shop")
    place = tmp_path / "elsewhere"
    train = TrainSettings(
        epochs=1, personal_epochs=3, validate_every=1, batch_size=8, dtype="float32"
    )
    config = StudyConfig(
        dataset=f"parquet:{shop}",
        encoder="toyshop-clip",
        storage=str(tmp_path / "results"),
        checkpoints=place.as_uri() if as_uri else str(place),
        train=train,
    )
    study = _study(config)
    spec = _spec(config)

    def stop(result: dict[str, Any]) -> None:
        if result["record"]["epoch"] == 3:
            raise KilledError

    with pytest.raises(KilledError):
        run_spec(study, spec, stop)
    assert subfolders(study.checkpoints) == [spec.trial_id]
    assert list((place / config.study / spec.trial_id).rglob("stage.safetensors"))
    assert not (study.folder.path / "checkpoints").exists()

    told = []
    run_spec(study, spec, told.append)
    assert [result["record"]["epoch"] for result in told] == [1, 2, 3, 4]
    assert subfolders(study.checkpoints) == []
    users = study.folder.users_of(spec.trial_id)

    other = _study(replace(config, storage=str(tmp_path / "unbroken"), checkpoints=""))
    run_spec(other, spec, lambda result: None)
    unbroken = other.folder.users_of(spec.trial_id)
    assert np.array_equal(users.test_rank, unbroken.test_rank, equal_nan=True)


def test_folders_of_checkpoints_on_any_file_system(tmp_path: Path) -> None:
    for base in (tmp_path / "a", (tmp_path / "b").as_uri(), "fsspec+memory://checkpoints/study"):
        assert subfolders(base) == []
        remove_folder(base)  # nothing is there
    (tmp_path / "b" / "one").mkdir(parents=True)
    (tmp_path / "b" / "file").touch()
    base = (tmp_path / "b").as_uri() + "/"
    assert subfolders(base) == ["one"]
    remove_folder(subfolder(base, "one"))
    assert subfolders(base) == []


def _study(config: StudyConfig) -> Any:
    folder = StudyFolder.create(config)
    cache = Path(config.storage) / ".cache"
    return Study(
        config=config,
        folder=folder,
        workspace=prepare(config.dataset, config.encoder, cache),
        run=run_trial,
    )


def _spec(config: StudyConfig) -> TrialSpec:
    trial = config.trial(
        "perpeft",
        seed=0,
        variant="iisan",
        groups=2,
        conditioning_weight=0.5,
        learning_rate=1e-3,
    )
    return TrialSpec("ablation", trial)
