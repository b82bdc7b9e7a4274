"""Whole trials on encoders of other families than CLIP, tiny and random."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from perpeft_ray.train.trial import run_trial
from perpeft_ray.train.workspace import open_split, prepare
from tests.encoder.tiny_models import write_tiny_model


@pytest.mark.parametrize(
    ("family", "variant", "last_layers"),
    [("siglip", "iisan", None), ("align", "bitfit", 1), ("pair", "oft", 2), ("text", "vera", None)],
)
def test_a_trial_ends_with_every_users_rank(
    small_folder, make_trial, tmp_path, family, variant, last_layers
):
    name = write_tiny_model(family, tmp_path / "encoder")
    workspace = prepare(f"parquet:{small_folder}", name, tmp_path / "cache")
    config = dataclasses.replace(
        make_trial("perpeft", variant), encoder=name, last_layers=last_layers
    )
    outcome = run_trial(config, workspace, lambda record: None, test=True)
    evaluable = open_split(workspace).evaluated("test")
    assert (outcome.users.test_rank[evaluable] >= 0).all()
    assert outcome.trainable_parameters > 0
    assert np.isfinite(outcome.valid.ndcg_at_20)
