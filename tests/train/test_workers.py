"""One, two and four workers give the same parameters and ranks: every method, stage and mode."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist

from perpeft_ray.config import (
    METHODS,
    PEFT_METHODS,
    SIMPLE_METHODS,
    VARIANTS,
    Method,
    Mode,
    TrialConfig,
)
from perpeft_ray.train import job
from perpeft_ray.train.cache import entry, read_stage_one, stage_one_key
from perpeft_ray.train.collective import Alone, Collective, TorchCollective
from perpeft_ray.train.evaluation import no_lists
from perpeft_ray.train.fit import ranks_of
from perpeft_ray.train.job import open_job
from perpeft_ray.train.state import weights
from perpeft_ray.train.trial import run_trial, train
from perpeft_ray.train.workspace import Workspace
from tests.processes import run_workers
from tests.train.conftest import MakeTrial

MODES: tuple[Mode, ...] = ("sequential", "parallel")
TRAINED = [method for method in METHODS if method not in SIMPLE_METHODS]
DIFFERENT_STEPS: list[Method] = ["perpeft", "global", "group_level_2", "without_mm"]
"""A module a group, one module, one with vectors, none."""
UNIT = 24
"""Items: pieces of the small shop have several units, which are shared."""
Found = dict[str, np.ndarray]


def _train(config: TrialConfig, workspace: Workspace, collective: Collective, **more: Any) -> Found:
    """Weights after stage 1 and after the last epoch, and both readings of ranks."""
    opened = open_job(config, workspace, collective, torch.device("cpu"), **more)
    trained, state = train(opened, lambda record: None)
    key = stage_one_key(config, workspace.fingerprint, opened.computed)
    first = read_stage_one(entry(workspace.stages, key))
    assert first is not None
    lists = no_lists(opened.split, torch.device("cpu"))
    ranks = {
        "valid": ranks_of(opened, state, trained.grouping, "valid"),
        "test": ranks_of(opened, state, trained.grouping, "test", lists),
    }
    return {
        **{f"stage 1 {name}": tensor.numpy() for name, tensor in first.weights.items()},
        **{f"last {name}": tensor.numpy() for name, tensor in weights(state).items()},
        "lists": lists.numpy(),
        **{f"ranks {part}": array for part, array in ranks.items()},
    }


def _join(rank: int, world: int, folder: Path) -> None:
    """Set a worker's process up."""
    torch.set_num_threads(1)
    patch.object(job, "items_in_a_unit", lambda *_: UNIT).start()
    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)


def _worker(
    rank: int, world: int, configs: Sequence[TrialConfig], workspace: Workspace, folder: Path
) -> None:
    _join(rank, world, folder)
    for config in configs:
        found = _train(config, workspace, TorchCollective())
        np.savez(folder / f"{config.config_hash}-{rank}.npz", **found)
    dist.destroy_process_group()


def _assert_alike(
    configs: Sequence[TrialConfig], world: int, workspace: Workspace, folder: Path
) -> None:
    alone = workspace.with_nothing_trained(folder / "alone")
    expected = {config.config_hash: _train(config, alone, Alone()) for config in configs}
    shared = workspace.with_nothing_trained(folder / "shared")
    run_workers(_worker, world, configs, shared, folder)
    for config in configs:
        for rank in range(world):
            found = np.load(folder / f"{config.config_hash}-{rank}.npz")
            wanted = expected[config.config_hash]
            assert set(found) == set(wanted)
            for name, value in wanted.items():
                told = f"{config.method} {config.variant} {config.mode} worker {rank}: {name}"
                if name.startswith("ranks"):
                    assert np.array_equal(found[name], value), told
                else:
                    np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=told)


@pytest.fixture(autouse=True)
def _small_units(monkeypatch):
    monkeypatch.setattr(job, "items_in_a_unit", lambda *_: UNIT)


def _config(make_trial: MakeTrial, method: Method, variant: Any, mode: Mode) -> TrialConfig:
    used = variant if method in PEFT_METHODS else None
    return make_trial(method, used, mode=mode, personal_epochs=2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("methods", "variant", "world"),
    [
        (DIFFERENT_STEPS, "iisan", 2),
        *(
            pytest.param(TRAINED, variant, world, marks=pytest.mark.slow)
            for variant in ("iisan", "lora")
            for world in (2, 4)
        ),
    ],
)
def test_every_method_is_the_same_on_any_number_of_workers(
    workspace, make_trial, tmp_path, methods, variant, world, mode
):
    configs = [_config(make_trial, method, variant, mode) for method in methods]
    _assert_alike(configs, world, workspace, tmp_path)


@pytest.mark.parametrize(
    "variants",
    [
        ("lora", "vera"),  # vera: each worker makes its frozen random matrices for itself
        pytest.param(VARIANTS, marks=pytest.mark.slow),
    ],
    ids=["two", "all"],
)
def test_every_variant_is_the_same_on_two_workers(workspace, make_trial, tmp_path, variants):
    configs = [_config(make_trial, "perpeft", variant, "parallel") for variant in variants]
    _assert_alike(configs, 2, workspace, tmp_path)


@pytest.mark.parametrize("method", ["global", "perpeft"])
def test_units_that_are_encoded_again_change_nothing(workspace, make_trial, tmp_path, method):
    """With dropout in the adapters and in SASRec, bit by bit."""
    config = dataclasses.replace(make_trial(method, "lora"), adapter_dropout=0.3)
    kept, again = (
        _train(config, workspace.with_nothing_trained(tmp_path / name), Alone(), memory_gb=memory)
        for name, memory in (("kept", 4.0), ("again", 1e-9))
    )
    for name, value in kept.items():
        assert np.array_equal(again[name], value), name


def test_workers_continue_where_one_process_stopped(workspace, make_trial, tmp_path):
    config = make_trial("perpeft", "lora", mode="parallel", personal_epochs=3)
    checkpoints = tmp_path / "checkpoints"
    unbroken = run_trial(
        config,
        workspace.with_nothing_trained(tmp_path / "unbroken"),
        lambda record: None,
        test=True,
    )
    broken = workspace.with_nothing_trained(tmp_path / "broken")

    def stop(record: Any) -> None:
        if record.epoch == 2:
            raise StopIteration

    with pytest.raises(StopIteration):
        run_trial(config, broken, stop, test=False, checkpoints=checkpoints)
    run_workers(_continue, 2, config, broken, checkpoints, tmp_path)
    ranks = np.load(tmp_path / "ranks.npy")
    assert np.array_equal(ranks, unbroken.users.test_rank)


def _continue(
    rank: int,
    world: int,
    config: TrialConfig,
    workspace: Workspace,
    checkpoints: Path,
    folder: Path,
) -> None:
    _join(rank, world, folder)
    outcome = run_trial(
        config,
        workspace,
        lambda record: None,
        test=True,
        checkpoints=checkpoints,
        collective=TorchCollective(),
    )
    np.save(folder / "ranks.npy", outcome.users.test_rank)
    dist.destroy_process_group()
