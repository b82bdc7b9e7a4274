"""Every variant's module to disk and back, and through `peft` alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.func import functional_call
from transformers import AutoModel

from perpeft_ray.config import FACTS, VARIANTS, StudyConfig, TrialConfig, Variant
from perpeft_ray.encoder.source import TOYSHOP_CLIP
from perpeft_ray.errors import InputError
from perpeft_ray.models.adapters import read_module, write_module
from perpeft_ray.recommender.model import Recommender
from perpeft_ray.train.build import build_model
from perpeft_ray.train.workspace import Workspace, open_catalogue, prepare


@pytest.fixture(scope="module")
def workspace(study_folder):
    config = study_folder.config
    return prepare(config.dataset, config.encoder, study_folder.path.parent / ".cache")


def _trial(study: StudyConfig, variant: Variant, seed: int = 0) -> TrialConfig:
    return study.trial(
        "perpeft",
        seed=seed,
        variant=variant,
        rank=4,
        groups=3,
        conditioning_weight=0.5,
        learning_rate=1e-2,
    )


def _build(config: TrialConfig, workspace: Workspace) -> Recommender:
    return build_model(config, workspace, torch.device("cpu")).eval()


def _moved(model: Recommender) -> dict[str, torch.nn.Parameter]:
    """A module as training might leave it."""
    torch.manual_seed(7)
    module = model.new_module()
    with torch.no_grad():
        for parameter in module.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize(
    ("variant", "last_layers"), [*((name, None) for name in VARIANTS), ("lora", 1)]
)
def test_what_is_written_is_what_is_read(study_folder, workspace, tmp_path, variant, last_layers):
    """Read by a model that was built anew, as on another machine."""
    config = replace(_trial(study_folder.config, variant), last_layers=last_layers)
    model = _build(config, workspace)
    module = _moved(model)
    items = np.arange(1, workspace.num_items + 1)
    with torch.no_grad():
        expected = model.embed(items, module)
    write_module(model, module, config, tmp_path, "toyshop-clip")
    fresh = _build(config, workspace)
    read = read_module(fresh, config, tmp_path)
    assert read.keys() == module.keys()
    for name, parameter in read.items():
        assert torch.equal(parameter, module[name]), name
    with torch.no_grad():
        again = fresh.embed(items, read)
    torch.testing.assert_close(again, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("variant", "last_layers"),
    [*((name, None) for name in VARIANTS if FACTS[name].in_towers), ("lora", 1), ("ia3", 1)],
)
def test_peft_alone_gives_the_same_features(
    study_folder, workspace, tmp_path, variant, last_layers
):
    config = replace(_trial(study_folder.config, variant), last_layers=last_layers)
    model = _build(config, workspace)
    module = _moved(model)
    write_module(model, module, config, tmp_path, "toyshop-clip")
    items = np.arange(1, workspace.num_items + 1)
    assert model.tower is not None
    own = {k.removeprefix("encoder."): v for k, v in module.items() if k.startswith("encoder.")}
    base = AutoModel.from_pretrained(TOYSHOP_CLIP)
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    batch = open_catalogue(workspace).batch(items)
    assert batch.pixels is not None
    with torch.no_grad():
        expected = functional_call(model.tower.encoder, own, model.tower.inputs(items))
        image = adapted.get_image_features(pixel_values=(batch.pixels / 255 - 0.5) / 0.5)
        text = adapted.get_text_features(input_ids=batch.token_ids)
    half = image.pooler_output.shape[1]
    image_rows, text_rows = batch.has_image.numpy(), batch.has_title.numpy()
    torch.testing.assert_close(
        image.pooler_output[image_rows], expected[image_rows, :half], atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        text.pooler_output[text_rows], expected[text_rows, half:], atol=1e-5, rtol=1e-5
    )


def test_a_module_of_another_size_is_refused(study_folder, workspace, tmp_path):
    config = _trial(study_folder.config, "lora")
    model = _build(config, workspace)
    write_module(model, _moved(model), config, tmp_path, "toyshop-clip")
    other = _trial(study_folder.config, "ia3")
    with pytest.raises(InputError, match="must have the adapter of its configuration"):
        read_module(_build(other, workspace), other, tmp_path)
