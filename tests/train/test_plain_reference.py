"""Trained trials against the plain reference: every parameter, group and rank of every stage."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from perpeft_ray.config import GROUPED_METHODS, PERSONAL_METHODS, TrialConfig
from perpeft_ray.encoder.source import TOYSHOP_CLIP
from perpeft_ray.train.collective import Alone
from perpeft_ray.train.job import Job, open_job
from perpeft_ray.train.outcome import TrialOutcome
from perpeft_ray.train.snapshot import Snapshot, Trained
from perpeft_ray.train.stages import final_model, stage_one
from perpeft_ray.train.state import weights
from perpeft_ray.train.trial import run_trial, train
from tests.train.plain_perpeft import Encoder, PlainPerPeft, Shop, Trace, Weights, ndcg_at_20

CASES: dict[str, dict[str, Any]] = {
    "lora": {"method": "perpeft", "variant": "lora"},
    "ia3": {"method": "perpeft", "variant": "ia3", "conditioning_weight": 1.0},
    "iisan": {"method": "perpeft", "variant": "iisan", "conditioning_weight": 0.25},
    "random_grouping": {"method": "random_grouping", "variant": "iisan"},
    "without_group_negatives": {"method": "without_group_negatives", "variant": "iisan"},
    "without_text": {"method": "without_text", "variant": "ia3"},
    "without_image": {"method": "without_image", "variant": "lora"},
    "global": {"method": "global", "variant": "lora"},
    "large_global": {"method": "large_global", "variant": "lora"},
    "user_level_1": {"method": "user_level_1", "variant": "iisan"},
    "group_level_2": {"method": "group_level_2", "variant": "iisan"},
    "frozen_mm": {"method": "frozen_mm", "variant": None},
    "without_mm": {"method": "without_mm", "variant": None},
}


@dataclass(frozen=True)
class Both:
    """A trial by the package and by the reference."""

    config: TrialConfig
    job: Job
    first: Snapshot
    trained: Trained
    last: Weights
    outcome: TrialOutcome
    plain: PlainPerPeft
    plain_first: Trace
    plain_groups: tuple[list[int], list[int]]
    plain_last: Trace

    @property
    def plain_best(self) -> int:
        """The epoch with the highest validation NDCG@20, the first of equals."""
        scores = {e: ndcg_at_20(r) for e, r in self.plain_last.ranks.items()}
        if self.config.method in ("global", "large_global", "frozen_mm", "without_mm"):
            # Stage 1 is part of their training.
            scores = {e: ndcg_at_20(r) for e, r in self.plain_first.ranks.items()} | scores
        return max(scores, key=lambda epoch: scores[epoch])


@pytest.fixture(scope="module", params=CASES)
def both(request, workspace, small_folder, make_trial, tmp_path_factory):
    torch.set_num_threads(1)
    case = CASES[request.param]
    config = make_trial(
        **case, epochs=2, personal_epochs=2, batch_size=8, learning_rate=3e-3, seed=3
    )
    config = dataclasses.replace(
        config,
        dropout=0.0,
        adapter_dropout=None if config.adapter_dropout is None else 0.0,
        weight_decay=0.3,  # large enough to be seen after a few steps
        peft_lr_scale=0.4,
        id_lr_scale=0.6,
        multimodal_weight=0.7 if case["method"] != "without_mm" else 0.0,
    )
    fresh = workspace.with_nothing_trained(tmp_path_factory.mktemp("trained"))
    job = open_job(config, fresh, Alone(), torch.device("cpu"))
    shop = Shop(small_folder)
    encoder = None
    if config.method != "without_mm":
        halves = {"without_text": ("image",), "without_image": ("text",)}
        halves_used = halves.get(config.method, ("image", "text"))
        encoder = Encoder(TOYSHOP_CLIP, shop, config.variant, halves_used)
    plain = PlainPerPeft(config, shop, encoder, weights(job.fresh_state([0])))
    first = stage_one(job, lambda record: None)
    trained, state = train(job, lambda record: None)
    outcome = run_trial(config, fresh, lambda record: None, test=True)

    plain_first = plain.stage_one()
    groups = ([0] * len(shop.train), [0] * len(shop.train))
    if config.method in GROUPED_METHODS:
        groups = plain.group()
    if config.method in PERSONAL_METHODS:
        plain_last = plain.stage_three(groups[0])
    else:
        module = final_model(job, trained.grouping).new_module()
        vectors = {name: p.detach() for name, p in module.items() if name.startswith("vectors.")}
        each = list(range(len(shop.train)))
        owners = (each, each) if config.method.startswith("user_level") else groups
        plain_last = plain.continue_stage_one(vectors, owners)
    return Both(
        config, job, first, trained, weights(state), outcome, plain, plain_first, groups, plain_last
    )


def test_the_case_has_something_to_tell_apart(both):
    """Groups of different sizes and batches of different sizes, so that mistakes show."""
    if both.config.method in GROUPED_METHODS:
        sizes = np.bincount(both.plain_groups[0])
        assert len(sizes) == 3
        assert len(set(sizes.tolist())) > 1
    assert len(both.plain.shop.trainable) % both.config.batch_size != 0


def test_stage_one_trains_the_same_parameters(both):
    _same(both.first.weights, both.plain_first.weights)


def test_stage_one_is_validated_alike(both):
    best = both.first.progress.best
    assert best is not None
    assert _evaluated(both, best.valid_ranks) == both.plain_first.ranks[best.epoch]


def test_groups_are_kmeans_of_the_global_models_states(both):
    if both.config.method not in GROUPED_METHODS:
        assert both.trained.grouping is None
        return
    assert both.trained.grouping is not None
    assert both.trained.grouping.valid.tolist() == both.plain_groups[0]
    assert both.trained.grouping.test.tolist() == both.plain_groups[1]


def test_later_epochs_train_the_same_parameters(both):
    _same(both.last, both.plain_last.weights)


def test_the_epoch_is_selected_by_validation(both):
    assert both.outcome.selected_epoch == both.plain_best
    ranks = {**both.plain_first.ranks, **both.plain_last.ranks}[both.plain_best]
    assert _evaluated(both, both.outcome.users.valid_rank) == ranks
    assert both.outcome.valid.ndcg_at_20 == pytest.approx(ndcg_at_20(ranks))


def test_test_ranks_are_of_the_selected_epoch_and_the_test_groups(both):
    kept = {**both.plain_first.weights_at, **both.plain_last.weights_at}[both.plain_best]
    both.plain.load(kept)
    users = len(both.plain.shop.train)
    personal = both.config.method in PERSONAL_METHODS
    ranks = both.plain.ranks("test", both.plain_groups[1] if personal else [0] * users)
    both.plain.load(both.plain_last.weights)
    assert _evaluated(both, both.outcome.users.test_rank) == ranks
    assert both.outcome.test is not None
    assert both.outcome.test.ndcg_at_20 == pytest.approx(ndcg_at_20(ranks))


def test_padding_is_embedded_as_zero(both):
    model, module = both.job.model, both.job.model.new_module()
    assert torch.count_nonzero(model.embed_all(module)[0]) == 0


def _evaluated(both: Both, ranks: Any) -> list[int]:
    return np.asarray(ranks)[both.plain.shop.evaluable].tolist()


def _same(found: Weights, expected: Weights) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        # Adam turns the rounding of a vanishing gradient into a visible step, here and there.
        apart = np.sort((found[name] - tensor).abs().numpy(), axis=None)
        assert apart[: -max(2, len(apart) // 100)].max(initial=0.0) < 2e-5, name
        assert apart[-1] < 2e-3, name
