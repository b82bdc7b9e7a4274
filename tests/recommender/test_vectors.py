"""Personal vectors over one module, against the formulas written out user by user."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from perpeft_ray.data.split import Histories
from perpeft_ray.encoder.items import CachedItemEncoder
from perpeft_ray.recommender.model import ItemTower, Recommender
from perpeft_ray.recommender.projector import Projector
from perpeft_ray.recommender.ranking import target_ranks
from perpeft_ray.recommender.sampling import TrainingBatch
from perpeft_ray.recommender.sasrec import SASRec
from perpeft_ray.recommender.vectors import PersonalVectors, VectorRecommender

USERS, ITEMS, OWNERS, D, T = 6, 20, 3, 8, 4
WEIGHT = 0.5


def make(level: Literal[1, 2]) -> tuple[VectorRecommender, dict[str, torch.nn.Parameter]]:
    torch.manual_seed(0)
    features = torch.randn(ITEMS + 1, 5).numpy()
    tower = ItemTower(CachedItemEncoder(features), Projector(5, D))
    base = Recommender(SASRec(ITEMS, D, T, 1, 2, 0.0), tower, WEIGHT).eval()
    owners = np.arange(USERS) % OWNERS
    model = VectorRecommender(base, PersonalVectors(OWNERS, D, level), owners).eval()
    module = model.new_module()
    with torch.no_grad():
        module["vectors.vector"].copy_(torch.randn(OWNERS, D))
    return model, module


def personal_table(model: VectorRecommender, module: dict, user: int) -> torch.Tensor:
    """Every item as this user sees it, [I+1, D]: the formula, for one user at a time."""
    ids = model.backbone.item_embedding.weight
    vector = module["vectors.vector"][model.owners[user]]
    rows = [torch.zeros(D)]
    for item in range(1, ITEMS + 1):
        _, content = model.parts(np.array([item]), module)
        if model.vectors.gate is None:
            personal = content[0] + vector
        else:
            gate = module["vectors.gate.weight"] @ vector + module["vectors.gate.bias"]
            personal = content[0] * torch.sigmoid(gate)
        rows.append(ids[item] + WEIGHT * personal)
    return torch.stack(rows)


@pytest.mark.parametrize("level", [1, 2])
def test_positions_are_looked_up_as_their_user_sees_them(level):
    model, module = make(level)
    users = np.array([4, 1])
    positions = np.array([[3, 9, 1], [9, 2, 20]])
    items, where = np.unique(positions, return_inverse=True)
    content = model.content(items, module)
    found = model.look_up(items, where.reshape(positions.shape), users, content, module)
    for row, user in enumerate(users):
        expected = personal_table(model, module, user)[positions[row]]
        torch.testing.assert_close(found[row], expected)


@pytest.mark.parametrize("level", [1, 2])
def test_ranks_are_those_of_scoring_every_item_for_every_user(level):
    model, module = make(level)
    rng = np.random.default_rng(1)
    users = np.arange(USERS)
    inputs = rng.integers(1, ITEMS + 1, size=(USERS, T))
    inputs[0, :2] = 0
    targets = rng.integers(1, ITEMS + 1, size=USERS)
    embeddings = model.embed_all(module)
    queries = model.queries(model.owners[users], inputs, embeddings, module)
    nothing = Histories(np.zeros(USERS + 1, dtype=np.int64), np.empty(0, dtype=np.int32))
    ranks = target_ranks(queries, embeddings, targets, nothing)
    for user in users:
        table = personal_table(model, module, user)
        block = torch.as_tensor(inputs[user : user + 1])
        state = model.backbone(table[block], block == 0)[0, -1]
        scores = (table @ state).detach()[1:]
        better = int((scores > scores[targets[user] - 1]).sum())
        assert ranks[user] == better


def test_level_1_begins_as_the_global_module_and_level_2_near_it():
    torch.manual_seed(0)
    factor, summand = PersonalVectors(OWNERS, D, 1)(torch.arange(OWNERS))
    assert torch.equal(factor, torch.ones(OWNERS, D))
    assert torch.equal(summand, torch.zeros(OWNERS, D))
    factor, summand = PersonalVectors(OWNERS, D, 2)(torch.arange(OWNERS))
    assert factor.min() > 0.6
    assert torch.equal(summand, torch.zeros(OWNERS, D))


@pytest.mark.parametrize("level", [1, 2])
def test_only_the_vectors_of_the_batch_get_gradients(level):
    model, module = make(level)
    batch = TrainingBatch(
        users=np.array([1, 4]),
        inputs=np.array([[0, 0, 3, 5], [0, 1, 2, 6]]),
        positives=np.array([[0, 0, 5, 7], [0, 2, 6, 8]]),
        negatives=np.array([[0, 0, 9, 10], [0, 11, 12, 13]]),
        outside_negatives=None,
    )
    loss, positions = model.loss_sum(batch, module, 1.0)
    loss.backward()
    assert positions == 5
    gradient = module["vectors.vector"].grad
    assert gradient is not None
    moved = gradient.abs().sum(dim=1) > 0
    assert moved.tolist() == [owner == 1 for owner in range(OWNERS)]
