"""CLIP's towers as we run them against transformers' own, in values, gradients and draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.activations import QuickGELUActivation

from perpeft_ray.data.catalogue import ItemBatch
from perpeft_ray.encoder import clip
from perpeft_ray.encoder.foundation import Towers, load_towers
from perpeft_ray.encoder.source import TOYSHOP_CLIP
from perpeft_ray.encoder.variants import AdapterSettings, add_adapter, trainable
from tests.encoder.tiny_models import write_tiny_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["toyshop-clip", "clip", "gelu"])
def encoder(request, tmp_path_factory):
    if request.param == "toyshop-clip":
        return str(TOYSHOP_CLIP)
    folder = tmp_path_factory.mktemp(request.param)
    name = write_tiny_model("clip", folder)
    if request.param == "gelu":
        config = folder / "config.json"
        config.write_text(config.read_text().replace("quick_gelu", "gelu"))
    return name


def some_items(towers: Towers) -> ItemBatch:
    """Titles of different lengths, the end-of-text token behind each, and images."""
    config = towers.model.config
    end, last = getattr(config.text_config, "eos_token_id", 2), config.text_config.vocab_size - 1
    end = last if end in (2, None) else min(end, last)
    ids = torch.randint(4, 9, (7, 8))
    counts = torch.tensor([2, 8, 5, 5, 3, 8, 4])
    ids[torch.arange(7), counts - 1] = end
    mask = torch.arange(8) < counts[:, None]
    size = config.vision_config.image_size
    return ItemBatch(
        pixels=torch.randint(0, 256, (7, 3, size, size), dtype=torch.uint8),
        token_ids=ids * mask,
        attention_mask=mask.long(),
        has_image=torch.ones(7, dtype=torch.bool),
        has_title=torch.ones(7, dtype=torch.bool),
    )


@pytest.mark.parametrize("variant", [None, "lora", "ia3", "dora", "bitfit", "ln_tuning"])
def test_equals_transformers(encoder, variant, monkeypatch):
    """Features, gradients and, with dropout on, the state of torch's generator afterwards."""
    torch.manual_seed(0)
    towers = load_towers(encoder, "float32", CPU)
    if variant is not None:
        rank = 4 if variant in ("lora", "dora") else None
        dropout = 0.5 if rank else None
        add_adapter(towers, AdapterSettings(variant, rank, dropout, None, 0))
        for parameter in trainable(towers).values():
            torch.nn.init.normal_(parameter, std=0.1)
        towers.train()
    batch = some_items(towers)

    def results() -> list[Tensor]:
        torch.manual_seed(1)
        features = towers(batch)
        parameters = list(trainable(towers).values())
        gradients = torch.autograd.grad(features.square().sum(), parameters) if parameters else ()
        with torch.no_grad():
            alone = towers.eval()(batch)
        towers.train(variant is not None)
        return [features.detach(), alone, *gradients, torch.get_rng_state().float()]

    ours = results()
    monkeypatch.setattr(clip, "runs", lambda model: False)
    for module in towers.modules():
        if isinstance(getattr(module, "activation_fn", None), clip.QuickGelu):
            module.activation_fn = QuickGELUActivation()
    for mine, theirs in zip(ours, results(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_is_not_used_where_attention_is_looked_at(encoder):
    towers = load_towers(encoder, "float32", CPU)
    assert clip.runs(towers.model)
    towers.model.set_attn_implementation("eager")
    assert not clip.runs(towers.model)
