"""Every PEFT variant learns the toyshop above the frozen encoder, given the same epochs.

What is compared is each user's *expected* NDCG@20 at the test step: over all that the planted user
could have taken next, by the toyshop's own softmax, in place of the one item that was drawn. Its
mean is what test NDCG@20 estimates, with less than half of its standard error (0.11 × 100 where the
drawn test item has 0.27, LoRA on a catalogue of 3,600 users). `frozen_mm` has the
better of two learning rates by validation, variants have one for all. A new variant is compared
without another line here. One seed of one catalogue: that a variant can learn, not that it is
better everywhere (results/findings/variants.md).
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import special, stats

from perpeft_ray.config import (
    VARIANTS,
    Method,
    PeftSettings,
    StudyConfig,
    TrainSettings,
    TrialConfig,
    Variant,
)
from perpeft_ray.data.toyshop import Shop, plant
from perpeft_ray.recommender.sampling import last_inputs
from perpeft_ray.train.collective import Alone
from perpeft_ray.train.job import open_job
from perpeft_ray.train.state import load_weights
from perpeft_ray.train.trial import train
from perpeft_ray.train.workspace import Workspace, prepare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

K = 20
LEARNING_RATE = 6e-3
FROZEN_LEARNING_RATES = (6e-3, 1e-2)
SHORT, LONG = (8, 16), (20, 20)
"""Epochs of stage 1 and of stage 3, for both sides of a comparison."""
EPOCHS: dict[Variant, tuple[int, int]] = {"iisan": LONG}
"""Where the short budget is not enough. IISAN does not start at the encoder's own projection and
comes back to it late."""
PEFT_LR_SCALES: dict[Variant, float] = {"vera": 1.0}
"""Where not the preset's: VeRA trains vectors alone, with a higher rate also in its paper."""

Expected = NDArray[np.float64]
"""Each user's expected NDCG@20, [U]."""


@pytest.fixture(scope="module")
def toyshop(tmp_path_factory):
    return prepare("toyshop", "toyshop-clip", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def shop():
    return plant(0)


@pytest.fixture(scope="module")
def frozen(toyshop, shop):
    """`frozen_mm` after so many epochs, with the learning rate that validation chooses."""

    @functools.cache
    def of(epochs: tuple[int, int]) -> Expected:
        tried = [
            expected_ndcg(toyshop, shop, _trial("frozen_mm", None, epochs, learning_rate=rate))
            for rate in FROZEN_LEARNING_RATES
        ]
        return max(tried, key=lambda result: result[0])[1]

    return of


@pytest.mark.parametrize(
    ("variant", "last_layers"), [*((variant, None) for variant in VARIANTS), ("lora", 1)]
)
def test_it_learns_more_than_the_frozen_encoder(toyshop, shop, frozen, variant, last_layers):
    epochs = EPOCHS.get(variant, SHORT)
    config = _trial("perpeft", variant, epochs, last_layers=last_layers)
    _, adapted = expected_ndcg(toyshop, shop, config)
    found = stats.ttest_rel(adapted, frozen(epochs), alternative="greater")
    print(
        f"{variant}, {config.last_layers or 'all'} layers, {epochs} epochs: expected NDCG@20 × 100 "
        f"{100 * adapted.mean():.2f}, frozen_mm {100 * frozen(epochs).mean():.2f}, "
        f"p = {found.pvalue:.1g}"
    )
    assert adapted.mean() > frozen(epochs).mean()
    assert found.pvalue < 0.05


def _trial(
    method: Method,
    variant: Variant | None,
    epochs: tuple[int, int],
    *,
    learning_rate: float = LEARNING_RATE,
    last_layers: int | None = None,
) -> TrialConfig:
    train_settings = TrainSettings(epochs=epochs[0], personal_epochs=epochs[1], validate_every=4)
    if variant in PEFT_LR_SCALES:
        train_settings = replace(train_settings, peft_lr_scale=PEFT_LR_SCALES[variant])
    study = StudyConfig(peft=PeftSettings(last_layers=last_layers), train=train_settings)
    return study.trial(
        method,
        seed=0,
        variant=variant,
        rank=4,
        groups=6,
        conditioning_weight=1.0,
        learning_rate=learning_rate,
    )


def expected_ndcg(workspace: Workspace, shop: Shop, config: TrialConfig) -> tuple[float, Expected]:
    """A trial's best validation NDCG@20, and each user's expected NDCG@20 at the test step."""
    job = open_job(config, workspace, Alone(), torch.device("cpu"))
    trained, state = train(job, lambda record: None)
    load_weights(state, trained.best.weights)
    split, model = job.split, job.model.eval()
    known = split.known("test")
    columns = [int(name.removeprefix("item")) for name in split.item_ids]
    rows = [int(name.removeprefix("user")) for name in split.user_ids]
    chances = special.softmax(shop.last_utility[np.ix_(rows, columns)], axis=1)  # [U, I]
    gains = 1 / np.log2(np.arange(K) + 2)
    everyone = np.zeros(split.num_users, dtype=np.int32)
    groups = everyone if trained.grouping is None else trained.grouping.test
    expected = np.full(split.num_users, np.nan)
    for group, module in state.modules.items():
        users = np.flatnonzero(groups == group)
        embeddings = model.embed_all(module)
        inputs = last_inputs(known, users, config.sequence_length)
        scores = model.queries(users, inputs, embeddings, module) @ embeddings[1:].T
        for user, row in zip(users, scores, strict=True):
            row[known.of(user).astype(np.int64) - 1] = -torch.inf
            expected[user] = chances[user, row.topk(K).indices.numpy()] @ gains
    assert not np.isnan(expected).any()
    return trained.best.valid.ndcg_at_20, expected
