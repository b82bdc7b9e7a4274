"""Whole trials on a small catalogue, in this process and over two."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from perpeft_ray.config import (
    GROUPED_METHODS,
    METHODS,
    PEFT_METHODS,
    PERSONAL_METHODS,
    SIMPLE_METHODS,
    DataSettings,
    TrialConfig,
)
from perpeft_ray.encoder.fast import prefix
from perpeft_ray.encoder.source import TOYSHOP_CLIP
from perpeft_ray.errors import InputError
from perpeft_ray.metrics import ranking_metrics
from perpeft_ray.recommender.simple import simple_ranks
from perpeft_ray.train import fit
from perpeft_ray.train.memory import naming_what_to_lower
from perpeft_ray.train.outcome import EpochRecord, TrialOutcome
from perpeft_ray.train.trial import run_trial
from perpeft_ray.train.workspace import Workspace, open_split, prepare
from tests.small_shop import write_small_shop


def _run(config: TrialConfig, workspace: Workspace, **kwargs: Any) -> TrialOutcome:
    return run_trial(config, workspace, lambda record: None, test=True, **kwargs)


@pytest.mark.parametrize("method", sorted(set(METHODS) - SIMPLE_METHODS))
def test_every_method_ends_with_its_outcome(workspace, make_trial, method):
    variant = "lora" if method in PEFT_METHODS else None
    config = make_trial(method, variant, epochs=2, personal_epochs=2, validate_every=2)
    records: list[EpochRecord] = []
    outcome = run_trial(config, workspace, records.append, test=True)
    split = open_split(workspace)
    assert [(r.stage, r.epoch) for r in records] == [(1, 1), (1, 2), (3, 3), (3, 4)]
    assert [r.valid is not None for r in records] == [False, True, False, True]
    assert outcome.users_evaluated == len(split.evaluated("test"))
    users = outcome.users
    evaluated = np.isin(np.arange(split.num_users), split.evaluated("test"))
    assert ((users.valid_rank >= 0) == evaluated).all()
    assert ((users.test_rank >= 0) == evaluated).all()
    assert outcome.test == ranking_metrics(users.test_rank[evaluated])
    assert outcome.valid == ranking_metrics(users.valid_rank[evaluated])
    grouped = method in GROUPED_METHODS
    assert set(users.group.tolist()) <= (set(range(3)) if grouped else {-1})
    layers = json.loads((TOYSHOP_CLIP / "config.json").read_text())["text_config"][
        "num_hidden_layers"
    ]
    # Both towers' layers, q and v, rank 4, width 64 in and out.
    towers = 1 if method in ("without_text", "without_image") else 2
    per_module = towers * layers * 2 * 4 * (64 + 64) if variant else 0
    vectors = {"user_level": split.num_users * 32, "group_level": 3 * 32}.get(method[:-2], 0)
    gate = 32 * 32 + 32 if method in ("user_level_2", "group_level_2") else 0
    # large_global has the rank of all three groups' modules.
    modules = 3 if method in PERSONAL_METHODS or method == "large_global" else 1
    assert outcome.trainable_parameters == modules * per_module + vectors + gate


@pytest.mark.parametrize("method", ["popularity", "item_knn"])
@pytest.mark.parametrize("test", [True, False])
def test_a_simple_baseline_is_a_trial_without_epochs(workspace, make_trial, method, test):
    records: list[EpochRecord] = []
    outcome = run_trial(make_trial(method, None), workspace, records.append, test=test)
    split = open_split(workspace)
    assert records == []
    assert np.array_equal(outcome.users.valid_rank, simple_ranks(method, split, "valid"))
    evaluated = outcome.users.test_rank[split.evaluated("test")]
    assert outcome.test == (ranking_metrics(evaluated) if test else None)
    assert (evaluated >= 0).all() == test


def test_the_same_seed_gives_the_same_ranks(workspace, make_trial, tmp_path):
    first = _run(make_trial("perpeft", "lora"), workspace)
    elsewhere = workspace.with_nothing_trained(tmp_path)
    again = _run(make_trial("perpeft", "lora"), elsewhere)
    other = _run(make_trial("perpeft", "lora", seed=1), workspace)
    assert np.array_equal(first.users.test_rank, again.users.test_rank)
    assert np.array_equal(first.users.group, again.users.group)
    assert not np.array_equal(first.users.test_rank, other.users.test_rank)


def test_stage_one_is_computed_once_for_those_that_share_it(workspace, make_trial, tmp_path):
    fresh = workspace.with_nothing_trained(tmp_path)
    stages = fresh.unfinished
    shared = []
    for method in (
        "global",
        "perpeft",
        "random_grouping",
        "without_group_negatives",
        "group_level_2",
        "user_level_1",
    ):
        records: list[EpochRecord] = []
        run_trial(make_trial(method), fresh, records.append, test=False)
        shared.append([r.shared for r in records])
    assert shared == [[False, False], *[[True, False]] * 5]
    assert len(list(stages.glob("*.safetensors"))) == 1
    run_trial(make_trial(learning_rate=2e-3), fresh, lambda record: None, test=False)
    assert len(list(stages.glob("*.safetensors"))) == 2


def test_a_modality_left_out_changes_nothing_by_its_content(make_trial, tmp_path):
    """Without titles the ranks of `without_text` stay, and so without images of `without_image`.

    Here with IISAN; tests/train/test_plain_reference.py has adapters in the towers.
    """
    shop = write_small_shop(tmp_path / "shop")
    blank = write_small_shop(tmp_path / "blank")
    items = pd.read_parquet(shop / "items.parquet")
    for method, column in (("without_text", "title"), ("without_image", "image")):
        items.assign(**{column: None}).astype({column: "string"}).to_parquet(
            blank / "items.parquet"
        )
        config = make_trial(method, "iisan")
        ranks = [
            _run(config, prepare(f"parquet:{folder}", "toyshop-clip", tmp_path / "cache"))
            for folder in (shop, blank)
        ]
        assert np.array_equal(*(outcome.users.test_rank for outcome in ranks))
        plain = _run(
            make_trial("perpeft", "iisan"),
            prepare(f"parquet:{shop}", "toyshop-clip", tmp_path / "cache"),
        )
        assert not np.array_equal(plain.users.test_rank, ranks[0].users.test_rank)


@pytest.mark.parametrize("method", ["global", "perpeft"])
def test_a_trained_trial_is_not_trained_again(workspace, make_trial, tmp_path, method, monkeypatch):
    """What the search trained, the ablation only evaluates; nothing but test differs."""
    config = make_trial(method, epochs=2, personal_epochs=2)
    straight = _run(config, workspace.with_nothing_trained(tmp_path / "a"))
    fresh = workspace.with_nothing_trained(tmp_path / "b")
    searched = run_trial(config, fresh, lambda record: None, test=False)
    monkeypatch.setattr(fit, "train_epoch", None)
    records: list[EpochRecord] = []
    read = run_trial(config, fresh, records.append, test=True)
    assert [(r.epoch, r.shared) for r in records] == [(1, True), (2, True), (3, True), (4, True)]
    assert read.stage3_seconds == searched.stage3_seconds
    assert (read.selected_epoch, read.valid) == (searched.selected_epoch, searched.valid)
    assert read.test == straight.test
    for name in ("group", "test_group", "valid_rank", "test_rank"):
        assert np.array_equal(getattr(read.users, name), getattr(straight.users, name)), name


def test_test_is_read_once_and_only_when_asked(workspace, make_trial, tmp_path, monkeypatch):
    parts: list[str] = []
    real = fit.evaluate  # type: ignore[attr-defined]  # not public there

    def spy(*args: Any, **more: Any) -> Any:
        parts.append(args[4])
        return real(*args, **more)

    monkeypatch.setattr(fit, "evaluate", spy)
    config = make_trial(personal_epochs=3)
    workspace = workspace.with_nothing_trained(tmp_path)
    outcome = run_trial(config, workspace, lambda record: None, test=False)
    assert outcome.test is None
    assert (outcome.users.test_rank == -1).all()
    assert "test" not in parts
    _run(config, workspace)
    assert parts.count("test") == 1


def test_more_groups_than_users(workspace, make_trial):
    with pytest.raises(InputError, match=r"number of users \(40\), but is 41"):
        _run(make_trial(groups=41), workspace)


def test_what_report_raises_stops_the_trial(workspace, make_trial):
    def stop(record: EpochRecord) -> None:
        raise StopIteration(record.epoch)

    with pytest.raises(StopIteration):
        run_trial(make_trial(), workspace, stop, test=True)


def test_last_layers_train_the_same_from_stored_states(
    workspace, make_trial, tmp_path, monkeypatch
):
    """Half of the towers' layers are never run, and every rank is what it is with all of them."""
    config = dataclasses.replace(make_trial(), last_layers=1)
    stored = _run(config, workspace.with_nothing_trained(tmp_path / "stored"))
    monkeypatch.setattr(prefix, "MAX_BYTES", 0)
    fresh = workspace.with_nothing_trained(tmp_path / "live")
    live = _run(config, dataclasses.replace(fresh, features=tmp_path / "features"))
    assert np.array_equal(stored.users.test_rank, live.users.test_rank)
    whole = _run(make_trial(), workspace.with_nothing_trained(tmp_path / "whole"))
    assert 2 * stored.trainable_parameters == whole.trainable_parameters
    assert not np.array_equal(stored.users.test_rank, whole.users.test_rank)


@pytest.mark.parametrize(
    ("method", "patience", "epochs"),
    [
        ("perpeft", 2, [1, 2, 3, 7, 8, 9]),
        ("global", 2, [1, 2, 3, 7, 8]),  # stage 1's best epoch is its own too
        ("global", 0, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
    ],
)
def test_a_stage_ends_after_as_many_validations_without_a_new_best(
    workspace, make_trial, method, patience, epochs
):
    """Weights that hardly move never give a new best after the first validation."""
    config = make_trial(method, epochs=6, personal_epochs=5, patience=patience, learning_rate=1e-12)
    records: list[EpochRecord] = []
    outcome = run_trial(config, workspace, records.append, test=False)
    assert [record.epoch for record in records] == epochs
    assert not outcome.still_improving


def test_a_trial_whose_best_epoch_is_its_last_is_still_improving(workspace, make_trial):
    config = make_trial("global", epochs=1, personal_epochs=1)
    outcome = _run(config, workspace)
    assert outcome.still_improving == (outcome.selected_epoch == 2)


@pytest.mark.parametrize("method", ["perpeft", "popularity"])
def test_a_split_by_time_ranks_each_span_for_those_who_are_in_it(tmp_path, make_trial, method):
    data = DataSettings(split="time", test_share=0.2)
    shop = write_small_shop(tmp_path / "shop")
    workspace = prepare(f"parquet:{shop}", "toyshop-clip", tmp_path / "cache", data=data)
    variant = "lora" if method == "perpeft" else None
    config = dataclasses.replace(make_trial(method, variant), split="time", test_share=0.2)
    assert config.data == data
    outcome = _run(config, workspace)
    split = open_split(workspace)
    validated, tested = split.evaluated("valid"), split.evaluated("test")
    assert set(validated) != set(tested)
    assert np.flatnonzero(outcome.users.valid_rank >= 0).tolist() == validated.tolist()
    assert np.flatnonzero(outcome.users.test_rank >= 0).tolist() == tested.tolist()
    assert outcome.users_evaluated == len(tested)
    assert outcome.valid == ranking_metrics(outcome.users.valid_rank[validated])


def test_a_full_gpu_names_the_settings_to_change():
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    told = pytest.raises(MemoryError, match=r"`train\.batch_size`.*`gpus_per_worker`")
    with told, naming_what_to_lower():
        raise full
