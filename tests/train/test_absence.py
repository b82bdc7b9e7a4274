"""Items without image or title are masked, alike in training and ranking."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from perpeft_ray.train.build import build_model
from perpeft_ray.train.workspace import open_catalogue
from tests.plain_batch import plain_batch

CPU = torch.device("cpu")
CASES = [("frozen_mm", None), ("perpeft", "lora"), ("perpeft", "ia3"), ("perpeft", "iisan")]
UNTITLED, UNPICTURED = 1, 30
"""Of the small shop's 30 items the first has no title and the last no image."""


def built(workspace, make_trial, method, variant):
    """A model with every trainable number moved off its start, so that no half is idle."""
    torch.set_num_threads(1)
    config = make_trial(method, variant)
    if config.adapter_dropout:  # the only difference of the two modes that is meant
        config = dataclasses.replace(config, adapter_dropout=0.0)
    model = build_model(config, workspace, CPU)
    module = model.new_module()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, module


@pytest.fixture(scope="module")
def other_filling(workspace, tmp_path_factory):
    """The workspace with noise where the store keeps zeros for an image, '' for a title."""
    folder = tmp_path_factory.mktemp("other")
    shutil.copytree(workspace.catalogue, folder / "catalogue")
    rng = np.random.default_rng(0)
    pixels = np.load(folder / "catalogue" / "pixels.npy")
    assert not pixels[0].any()
    pixels[0] = rng.integers(0, 256, pixels[0].shape)
    tokens = np.load(folder / "catalogue" / "token_ids.npy")
    counts = np.load(folder / "catalogue" / "token_counts.npy")
    tokens[UNTITLED], counts[UNTITLED] = tokens[2], counts[2]
    for name, array in (("pixels", pixels), ("token_ids", tokens), ("token_counts", counts)):
        np.save(folder / "catalogue" / f"{name}.npy", array)
    return dataclasses.replace(
        workspace, catalogue=folder / "catalogue", features=folder / "features"
    )


@pytest.mark.parametrize(("method", "variant"), CASES)
def test_training_and_ranking_embed_them_alike(workspace, make_trial, method, variant):
    """As a training step does, in a batch of some items; as ranking does, all items at once."""
    model, module = built(workspace, make_trial, method, variant)
    model.train()
    items = np.array([UNTITLED, 7, UNPICTURED])
    in_training = model.embed(items, module).detach()
    model.eval()
    in_ranking = model.embed_all(module)[items]
    torch.testing.assert_close(in_training, in_ranking, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("method", "variant"), CASES)
def test_what_fills_the_gap_does_not_count(workspace, other_filling, make_trial, method, variant):
    """In ranking and in the gradients of a training step."""
    items = np.array([UNTITLED, UNPICTURED])
    found = []
    for where in (workspace, other_filling):
        model, module = built(where, make_trial, method, variant)
        model.eval()  # no dropout; the towers' own stays off in training too
        embedded = model.embed(items, module)
        embedded.square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in module.items()}
        found.append((embedded.detach(), gradients))
    torch.testing.assert_close(*found)


def test_they_are_the_halves_of_zeros(workspace, make_trial):
    batch = plain_batch(open_catalogue(workspace), np.array([UNTITLED, UNPICTURED]))
    assert batch.has_title.tolist() == [False, True]
    assert batch.has_image.tolist() == [True, False]
    for method, variant in CASES[:3]:
        model, _ = built(workspace, make_trial, method, variant)
        items = np.array([UNTITLED, UNPICTURED])
        features = model.tower.encoder(*model.tower.inputs(items))
        image, text = features.chunk(2, dim=1)
        assert image.any(dim=1).tolist() == [True, False]
        assert text.any(dim=1).tolist() == [False, True]
