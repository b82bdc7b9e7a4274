"""A trial's weights read back: its own ranks come out again."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from perpeft_ray.config import Dtype
from perpeft_ray.errors import InputError
from perpeft_ray.models.portable import open_workspace
from perpeft_ray.models.trained import (
    TrainedTrial,
    choose_trial,
    item_embedding,
    item_embeddings,
    open_global,
    open_trained,
    user_states,
)
from perpeft_ray.store.folder import StudyFolder
from perpeft_ray.store.weights import keep_weights
from perpeft_ray.train.grouping import nearest_centroids
from tests.encoder.tiny_models import write_tiny_model
from tests.models.conftest import GROUPS, new_study, trials_of

CASES = [
    *(("perpeft", variant) for variant in ("lora", "ia3", "iisan")),
    *((m, "lora") for m in ("random_grouping", "global", "user_level_2", "group_level_1")),
    *(("without_text", "lora"), ("frozen_mm", None), ("without_mm", None)),
]


@pytest.mark.parametrize(("method", "variant"), CASES)
@pytest.mark.parametrize("part", ["valid", "test"])
def test_a_trials_own_ranks_are_reproduced(study_folder, finished_trial, method, variant, part):
    """Counted one user at a time from states and embeddings."""
    trial_id = finished_trial(method, variant)
    trial = open_trained(study_folder, trial_id)
    assert not trial.model.training
    expected = study_folder.users_of(trial_id)[f"{part}_rank"]
    embeddings = {group: item_embeddings(trial, group) for group in trial.modules}
    users = trial.split.evaluated("test")
    assert len(users) > 20
    for user in users:
        group = int(trial.modules_of_users(part)[user])
        table = embeddings[group]
        scores = table @ user_states(trial, np.array([user]), group, table, part)[0]
        target = trial.split.target(part)[user]
        known = trial.split.known(part).of(user)
        others = np.setdiff1d(np.arange(1, len(table)), [*known, target])
        assert (scores[others] >= scores[target]).sum() == expected[user]


def test_one_item_is_embedded_as_among_all(study_folder, finished_trial):
    trial = open_trained(study_folder, finished_trial("perpeft", "lora"))
    for group in range(GROUPS):
        table = item_embeddings(trial, group)
        for item in (1, 17, trial.split.num_items):  # without title, with both, without image
            torch.testing.assert_close(item_embedding(trial, item, group), table[item])


def test_users_are_nearest_to_the_centroid_of_their_group(study_folder, finished_trial):
    """The kept centroids and the stage-1 model give every user's group again, and are means."""
    trial = open_trained(study_folder, finished_trial("perpeft", "lora"))
    first = open_global(study_folder, trial)
    everyone = np.arange(trial.split.num_users)
    table = item_embeddings(first, 0)
    grouping = trial.grouping
    assert grouping is not None
    assert grouping.centroids is not None
    states = user_states(first, everyone, 0, table, "valid").numpy()
    np.testing.assert_allclose(grouping.states, states, atol=1e-6)
    later = user_states(first, everyone, 0, table, "test").numpy()
    assert np.array_equal(nearest_centroids(states, grouping.centroids), grouping.valid)
    assert np.array_equal(nearest_centroids(later, grouping.centroids), grouping.test)
    for group in range(GROUPS):
        mean = states[grouping.valid == group].mean(axis=0)
        np.testing.assert_allclose(grouping.centroids[group], mean, atol=1e-4)


def study_of(shop: Path, storage: Path, dtype: Dtype) -> StudyFolder:
    """A study of its own in a storage, with frozen weights of a dtype."""
    like = new_study(shop, storage)
    train = replace(like.config.train, dtype=dtype)
    return StudyFolder.create(replace(like.config, study=dtype, train=train), like.fingerprints)


def first_states(folder: StudyFolder, trial: TrainedTrial) -> np.ndarray:
    """The users' outputs under a trial's stage 1, which grouped them."""
    first = open_global(folder, trial)
    everyone = np.arange(trial.split.num_users)
    return user_states(first, everyone, 0, item_embeddings(first, 0), "valid").numpy()


def test_stage_1_is_of_the_dtype_that_auto_meant(shop, tmp_path):
    """Of two stages that differ by their dtype only, the one that grouped the trial's users."""
    for dtype in ("bfloat16", "auto"):  # auto: float32, for so small an encoder
        folder = study_of(shop, tmp_path, dtype)
        trial_id = trials_of(folder)()
    assert len(list((tmp_path / ".cache" / "stage1").glob("*.safetensors"))) == 2
    trial = open_trained(folder, trial_id)
    assert trial.grouping is not None
    np.testing.assert_allclose(trial.grouping.states, first_states(folder, trial), atol=1e-6)


@pytest.mark.parametrize("kept", [False, True])
def test_weights_trained_without_fast_paths_are_found(shop, tmp_path, monkeypatch, kept):
    folder = study_of(shop, tmp_path, "auto")
    monkeypatch.setenv("PERPEFT_FAST", "0")
    trial_id = trials_of(folder)()
    monkeypatch.delenv("PERPEFT_FAST")
    if kept:
        assert keep_weights(folder, open_workspace(folder)[1]) == (1, 0)
        for part in ("trials", "stage1"):
            shutil.rmtree(folder.cache / part)
    trial = open_trained(folder, trial_id)
    assert trial.grouping is not None
    np.testing.assert_allclose(trial.grouping.states, first_states(folder, trial), atol=1e-4)


def test_rows_of_a_version_without_the_column_are_refused(shop, tmp_path):
    folder = study_of(shop, tmp_path, "float32")
    trial_id = trials_of(folder)()
    file = folder.path / "trials" / f"{trial_id}.parquet"
    pq.write_table(pq.read_table(file).drop_columns("computed"), file)
    with pytest.raises(InputError, match=f"must have `computed`.*{trial_id}.*another version"):
        open_trained(folder, trial_id)
    assert keep_weights(folder, open_workspace(folder)[1]) == (0, 1)


def test_the_best_trial_is_the_ablations_by_validation(study_folder, finished_trial):
    for learning_rate in (1e-2, 1e-3):
        finished_trial(learning_rate=learning_rate)
    finished_trial(learning_rate=3e-2, phase="search")
    trials = study_folder.trials()
    own = trials[(trials.phase == "ablation") & (trials.method == "perpeft")]
    best = own.set_index("trial_id").valid_ndcg_at_20
    assert best[choose_trial(study_folder, "best")] == best.max()


def test_any_complete_trial_can_be_chosen_by_its_id(study_folder, finished_trial):
    searched = finished_trial(learning_rate=3e-2, phase="search")
    assert choose_trial(study_folder, searched) == searched
    assert study_folder.config_of(searched).learning_rate == 3e-2
    with pytest.raises(InputError, match="`trial` must be best or the id of a COMPLETE trial"):
        choose_trial(study_folder, "../secret")
    with pytest.raises(InputError, match="`method` item_knn"):
        choose_trial(study_folder, "best", "item_knn")


def test_a_missing_stage_1_is_named_with_a_remedy(study_folder, finished_trial, tmp_path):
    trial_id = finished_trial("perpeft", "lora")
    storage = tmp_path / "copy"
    shutil.copytree(study_folder.path.parent, storage)
    folder = StudyFolder.open(storage / study_folder.path.name)
    trial = open_trained(folder, trial_id)
    shutil.rmtree(storage / ".cache" / "stage1")
    with pytest.raises(InputError, match=r"must have stage 1 of .* run `perpeft pack`"):
        open_global(folder, trial)


@pytest.mark.parametrize("what", ["items", "images", "encoder"])
def test_a_trial_of_other_data_or_another_encoder_is_not_opened(shop, tmp_path, what):
    data = tmp_path / "data"
    shutil.copytree(shop, data)
    encoder = write_tiny_model("clip", tmp_path / "encoder")
    folder = new_study(data, tmp_path / "results", encoder)
    trial_id = trials_of(folder)("without_mm", None)
    assert open_trained(folder, trial_id).trial_id == trial_id
    if what == "items":
        items = pd.read_parquet(data / "items.parquet")
        items.assign(title="another").to_parquet(data / "items.parquet")
    elif what == "images":
        shutil.copy(data / "images" / "5.png", data / "images" / "6.png")
    else:
        file = tmp_path / "encoder" / "model.safetensors"
        save_file({name: -tensor for name, tensor in load_file(file).items()}, file)
    with pytest.raises(InputError, match="must stay as they were when the study in") as no:
        open_trained(folder, trial_id)
    assert ("encoder" if what == "encoder" else "dataset") in str(no.value)
