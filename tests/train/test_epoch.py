"""What a step is made of, and what it moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from perpeft_ray.config import VARIANTS
from perpeft_ray.recommender.sampling import TrainingSampler
from perpeft_ray.train.build import build_model
from perpeft_ray.train.collective import Alone
from perpeft_ray.train.epoch import ID_NORM_WEIGHT, StageData, steps_of, train_epoch
from perpeft_ray.train.grouping import group_items
from perpeft_ray.train.memory import Units
from perpeft_ray.train.state import (
    TrainState,
    load_weights,
    new_state,
    optimizer_tensors,
    weights,
)
from perpeft_ray.train.workspace import Workspace, open_split
from tests.train.conftest import MakeTrial

CPU = torch.device("cpu")
USERS = {0: np.arange(20), 1: np.arange(20, 25), 2: np.arange(25, 25), 3: np.arange(25, 38)}


def test_sequential_steps_are_shuffled_single_batches():
    steps = steps_of(USERS, 8, None, np.random.default_rng(0))
    assert all(len(step) == 1 for step in steps)
    order = [step[0].group for step in steps]
    # ceil(20/8), ceil(5/8), 0 and ceil(13/8) batches
    assert sorted(order) == [0, 0, 0, 1, 3, 3]
    assert order != sorted(order)
    for group, users in USERS.items():
        drawn = [step[0].users for step in steps if step[0].group == group]
        assert sorted(np.concatenate([*drawn, []]).tolist()) == users.tolist()


def test_parallel_steps_hold_the_next_batch_of_every_group_that_has_one():
    steps = steps_of(USERS, 8, 1, np.random.default_rng(0))
    assert [[(b.group, b.number) for b in step] for step in steps] == [
        [(0, 0), (1, 0), (3, 0)],
        [(0, 1), (3, 1)],
        [(0, 2)],
    ]


def test_parallel_steps_of_one_module_spread_its_batches_evenly():
    steps = steps_of({0: np.arange(40)}, 8, 3, np.random.default_rng(0))
    assert [[batch.number for batch in step] for step in steps] == [[0, 1, 2], [3, 4]]


def _state(workspace: Workspace, make_trial: MakeTrial, **trial: object) -> TrainState:
    config = make_trial(**trial)
    model = build_model(config, workspace, CPU)
    return new_state(model, {g: model.new_module() for g in range(3)}, config)


def _data(workspace: Workspace, weight: float = 1.0) -> StageData:
    split = open_split(workspace)
    sampler = TrainingSampler(split.train, split.num_items, 10)
    groups = (np.arange(split.num_users) % 3).astype(np.int32)
    trainable = sampler.trainable_users
    users = {g: trainable[groups[trainable] == g] for g in range(3)}
    pools = dict(enumerate(group_items(split.train, groups, 3)))
    return StageData(3, sampler, users, pools, weight)


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_active_groups_module_and_moments_move(workspace, make_trial, variant):
    state = _state(workspace, make_trial, variant=variant)
    config = make_trial(variant=variant)
    data = _data(workspace)
    frozen = {
        name: p.detach().clone()
        for name, p in state.model.named_parameters()
        if not name.startswith("backbone.")
    }
    before = weights(state)
    only_one = StageData(3, data.sampler, {1: data.users[1]}, data.pools, 1.0)
    train_epoch(state, only_one, 1, config, Alone(), Units())
    after = weights(state)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert {name.split(".")[1] for name in moved if name.startswith("modules.")} == {"1"}
    assert any(name.startswith("modules.1.encoder.") for name in moved)
    assert any(name.startswith("modules.1.projector.") for name in moved)
    assert any(name.startswith("backbone.") for name in moved)
    moments = optimizer_tensors(state)
    assert {name.split(".")[1] for name in moments if name.startswith("modules.")} == {"1"}
    for name, value in frozen.items():
        assert torch.equal(value, dict(state.model.named_parameters())[name]), name


def test_a_parallel_step_is_gradient_accumulation_over_its_batches(workspace, make_trial):
    """SASRec's gradient of one parallel step against autograd on the summed loss, by hand."""
    config = make_trial(mode="parallel", batch_size=1000)
    state = _state(workspace, make_trial, mode="parallel", batch_size=1000)
    data = _data(workspace)
    start = weights(state)
    seen: dict[str, torch.Tensor] = {}

    def keep(*_: object) -> None:
        seen.update({n: p.grad.clone() for n, p in state.model.backbone.named_parameters()})

    state.backbone_optimizer.register_step_pre_hook(keep)
    train_epoch(state, data, 1, config, Alone(), Units())

    load_weights(state, start)
    state.model.train()
    state.model.zero_grad()
    rng = np.random.default_rng([config.seed, 3, 1])
    (step,) = steps_of(data.users, config.batch_size, 1, rng)
    losses, positions = [], 0
    for batch in step:
        rng = np.random.default_rng([config.seed, 3, 1, batch.group, batch.number])
        torch.manual_seed(int(rng.integers(2**62)))
        sample = data.sampler.sample(batch.users, rng, pool=data.pools[batch.group], weight=1.0)
        loss, count = state.model.loss_sum(sample, state.modules[batch.group], 1.0)
        losses.append(loss)
        positions += count
    table = state.model.backbone.item_embedding.weight
    (torch.stack(losses).sum() / positions + ID_NORM_WEIGHT * table.norm()).backward()
    for name, parameter in state.model.backbone.named_parameters():
        torch.testing.assert_close(seen[name], parameter.grad, atol=1e-7, rtol=1e-4)


def test_a_loss_that_is_not_finite_stops_training(workspace, make_trial):
    state = _state(workspace, make_trial)
    with torch.no_grad():
        state.model.backbone.norm.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="stage 3, epoch 1"):
        train_epoch(state, _data(workspace), 1, make_trial(), Alone(), Units())
