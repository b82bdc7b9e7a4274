"""Every variant's module to disk and back, and through `peft` alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.func import functional_call

from perpeft_ray.config import FACTS, VARIANTS, TrialConfig, Variant
from perpeft_ray.errors import InputError
from perpeft_ray.models.adapters import read_module, write_module
from perpeft_ray.recommender.model import Recommender
from perpeft_ray.train.build import build_model
from perpeft_ray.train.workspace import Workspace, open_catalogue, prepare
from tests.models.conftest import clip_features, own
from tests.plain_batch import plain_batch

IN_TOWERS = [variant for variant in VARIANTS if FACTS[variant].in_towers]


@pytest.fixture(scope="module")
def workspace(study_folder):
    config = study_folder.config
    return prepare(config.dataset, config.encoder, study_folder.path.parent / ".cache")


def trial_of(study_folder, variant: Variant, last_layers: int | None = None) -> TrialConfig:
    config = study_folder.config.trial(
        "perpeft",
        seed=0,
        variant=variant,
        rank=4,
        groups=3,
        conditioning_weight=0.5,
        learning_rate=1e-2,
    )
    return replace(config, last_layers=last_layers)


def build(config: TrialConfig, workspace: Workspace) -> Recommender:
    return build_model(config, workspace, torch.device("cpu")).eval()


def write_moved(model, config, folder):
    """Write a module as training might leave it, and return it."""
    torch.manual_seed(7)
    module = model.new_module()
    with torch.no_grad():
        for parameter in module.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    write_module(model, module, config, folder, "toyshop-clip")
    return module


@pytest.mark.parametrize(("variant", "last_layers"), [*((v, None) for v in VARIANTS), ("lora", 1)])
def test_a_written_module_is_read_by_a_new_model(
    study_folder, workspace, tmp_path, variant, last_layers
):
    config = trial_of(study_folder, variant, last_layers)
    model, fresh = build(config, workspace), build(config, workspace)
    module = write_moved(model, config, tmp_path)
    read = read_module(fresh, config, tmp_path)
    assert read.keys() == module.keys()
    assert all(torch.equal(parameter, module[name]) for name, parameter in read.items())
    items = np.arange(1, workspace.num_items + 1)
    with torch.no_grad():
        expected, again = model.embed(items, module), fresh.embed(items, read)
    torch.testing.assert_close(again, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("variant", "last_layers"), [*((v, None) for v in IN_TOWERS), ("lora", 1), ("ia3", 1)]
)
def test_peft_alone_gives_the_same_features(
    study_folder, workspace, tmp_path, variant, last_layers
):
    config = trial_of(study_folder, variant, last_layers)
    model = build(config, workspace)
    module = write_moved(model, config, tmp_path)
    items = np.arange(1, workspace.num_items + 1)
    batch = plain_batch(open_catalogue(workspace), items)
    image, text = clip_features(tmp_path / "adapter", batch)
    assert model.tower is not None
    with torch.no_grad():
        ours = functional_call(model.tower.encoder, own(module), model.tower.inputs(items))
    image_part, text_part = ours.tensor_split([image.shape[1]], dim=1)
    for there, features, part in (
        (batch.has_image, image, image_part),
        (batch.has_title, text, text_part),
    ):
        torch.testing.assert_close(features[there], part[there], atol=1e-5, rtol=1e-5)


def test_a_module_of_another_variant_is_refused(study_folder, workspace, tmp_path):
    config = trial_of(study_folder, "lora")
    write_moved(build(config, workspace), config, tmp_path)
    other = trial_of(study_folder, "ia3")
    with pytest.raises(InputError, match="must have the adapter of its configuration"):
        read_module(build(other, workspace), other, tmp_path)
