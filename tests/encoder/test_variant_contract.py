"""One suite over every PEFT variant in the towers, on a small CLIP."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.func import functional_call
from transformers import CLIPConfig

from perpeft_ray.cli.main import perpeft
from perpeft_ray.config import FACTS, VARIANTS, Dtype, Variant
from perpeft_ray.data.catalogue import Catalogue, ItemBatch
from perpeft_ray.encoder.foundation import Towers, load_towers
from perpeft_ray.encoder.items import TowerItemEncoder
from perpeft_ray.encoder.sizes import module_parameters
from perpeft_ray.encoder.source import TOYSHOP_CLIP
from perpeft_ray.encoder.variants import AdapterSettings, add_adapter, peft_config, trainable
from perpeft_ray.errors import InputError

CPU = torch.device("cpu")
IN_TOWERS = [variant for variant in VARIANTS if FACTS[variant].in_towers]
ON_VIT_B_32 = {
    # 12 layers, widths 512 (text) and 768 (image); rank 4 where there is one.
    "lora": 2 * 12 * 4 * (2 * 512 + 2 * 768),
    "ia3": 12 * 3 * (512 + 768),
    "rslora": 2 * 12 * 4 * (2 * 512 + 2 * 768),
    "dora": 2 * 12 * (4 * (2 * 512 + 2 * 768) + 512 + 768),
    "loha": 2 * 2 * 12 * 4 * (2 * 512 + 2 * 768),
    # 512 = 16 x 32 and 768 = 24 x 32: a small square factor and a low-rank larger one.
    "lokr": 2 * 12 * (16 * 16 + 2 * 4 * 32 + 24 * 24 + 2 * 4 * 32),
    "vera": 2 * 12 * (4 + 512 + 4 + 768),
    # width / 4 bases; of each, Λ has 4 scales and Γ as many as the layer is wide.
    "randlora": 2 * 12 * (128 * 4 + 128 * 512 + 192 * 4 + 192 * 768),
    "oft": 2 * 12 * (128 + 192) * (4 * 3 // 2),
    "ln_tuning": 2 * ((2 * 12 + 1) * 512 + (2 * 12 + 2) * 768),
    "bitfit": 12 * 9 * (512 + 768),
    "iisan": 3_572_149,  # as in the paper
}


def _settings(variant: Variant, **changed: Any) -> AdapterSettings:
    values = {"rank": 4, "dropout": 0.1, "last_layers": None, "seed": 0, **changed}
    return AdapterSettings(variant, **values)


def _towers(variant: Variant, dtype: Dtype = "float32", **changed: Any) -> Towers:
    towers = load_towers("toyshop-clip", dtype, CPU)
    add_adapter(towers, _settings(variant, **changed))
    return towers


def _moved(towers: Towers, seed: int = 3) -> dict[str, torch.nn.Parameter]:
    """A group's module some way from where training starts."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.nn.Parameter(p.detach() + 0.1 * torch.randn(p.shape, generator=generator))
        for name, p in trainable(towers).items()
    }


NO_ITEMS = Catalogue(
    folder=Path(),
    pixels=None,
    pixel_row=np.zeros(1, dtype=np.int32),
    token_ids=np.zeros((1, 1), dtype=np.int32),
    token_counts=np.ones(1, dtype=np.int32),
    has_title=np.zeros(1, dtype=bool),
)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    count = 5
    ids = torch.from_numpy(rng.integers(3, 600, size=(count, 8)))
    ids[:, -1] = 682
    size = CLIPConfig.from_pretrained(TOYSHOP_CLIP).vision_config.image_size
    pixels = rng.integers(0, 256, size=(count, 3, size, size), dtype=np.uint8)
    there = torch.ones(count, dtype=torch.bool)
    return ItemBatch(torch.from_numpy(pixels), ids, torch.ones_like(ids), there, there)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def test_every_variant_has_its_facts():
    assert tuple(FACTS) == VARIANTS == get_args(Variant)
    assert len(VARIANTS) >= 12


@pytest.fixture(scope="module")
def vit_b_32(tmp_path_factory):
    """CLIPConfig's defaults are ViT-B/32; without weights."""
    folder = tmp_path_factory.mktemp("vit_b_32")
    CLIPConfig().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_on_vit_b_32(vit_b_32, variant):
    assert module_parameters(vit_b_32, variant) == ON_VIT_B_32[variant]
    if FACTS[variant].in_towers and variant != "ln_tuning":  # whose outer LayerNorms drop out too
        last = module_parameters(vit_b_32, variant, last_layers=3)
        assert 12 * last == 3 * ON_VIT_B_32[variant]


@pytest.mark.parametrize("variant", [v for v in VARIANTS if FACTS[v].scalable])
def test_scalable_variants_grow_with_their_size(vit_b_32, variant):
    larger = module_parameters(vit_b_32, variant, rank=32, bottleneck=8 * 32)
    # DoRA's magnitudes do not grow, nor do the matrices between IISAN's towers.
    least = {"dora": 7, "iisan": 2}.get(variant, 8)
    assert least <= larger / ON_VIT_B_32[variant] <= 8


def test_command_lists_all_variants(vit_b_32, capsys):
    perpeft(["variants", "--encoder", vit_b_32, "--rank", "5"])
    printed = capsys.readouterr().out
    assert "151,277,313" in printed
    for variant, facts in FACTS.items():
        assert f"\n{variant}: {facts.summary}" in printed
    assert re.search(r"\niisan +3,572,149 +2.361 +– +– +– +–", printed)
    assert re.search(r"\nbitfit +138,240 +0.091 +– +– +yes +yes", printed)
    assert re.search(r"\noft +– +– +yes", printed)
    assert "`peft.rank` of oft must be at least 2 and divide the encoder's widths (512, 768)" in (
        printed
    )


@pytest.mark.parametrize("variant", IN_TOWERS)
def test_untrained_adapter_changes_nothing(variant, batch):
    plain = load_towers("toyshop-clip", "float32", CPU)
    with torch.no_grad():
        torch.testing.assert_close(_towers(variant)(batch), plain(batch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", IN_TOWERS)
def test_only_the_module_learns(variant, dtype, batch):
    """The frozen base keeps every bit; every tensor of the module gets a gradient and moves."""
    base = load_towers("toyshop-clip", dtype, CPU)
    frozen = {name: p.detach().clone() for name, p in base.named_parameters()}
    towers = _towers(variant, dtype, dropout=0.0)
    before = {name: t.clone() for name, t in towers.state_dict().items()}
    module, other = _moved(towers), _moved(towers)
    assert all(p.dtype == torch.float32 for p in module.values())
    start = {name: p.detach().clone() for name, p in module.items()}
    optimizer = torch.optim.AdamW(module.values(), lr=0.01)
    for _ in range(2):
        out = functional_call(towers, module, (batch,))
        assert out.shape == (5, towers.out_features)
        assert out.dtype == torch.float32
        optimizer.zero_grad()
        out.square().sum().backward()
        optimizer.step()
    assert all(not torch.equal(p, start[name]) for name, p in module.items())
    assert all(torch.equal(p, start[name]) for name, p in other.items())
    after = towers.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    for name, p in towers.named_parameters():
        if not p.requires_grad:
            plain = name.replace(".base_layer", "")
            assert plain not in frozen or torch.equal(p, frozen[plain]), name


@pytest.mark.parametrize("variant", IN_TOWERS)
def test_saved_module_gives_the_same_output(variant, batch, tmp_path):
    """Also in another process, whose towers are made anew from the same seed."""
    towers = _towers(variant)
    module = _moved(towers)
    save_file({name: p.detach() for name, p in module.items()}, tmp_path / "module.safetensors")
    torch.manual_seed(99)
    again = _towers(variant)
    loaded = load_file(tmp_path / "module.safetensors")
    assert set(loaded) == set(trainable(again))
    with torch.no_grad():
        out = functional_call(towers, module, (batch,))
        assert torch.equal(functional_call(again, loaded, (batch,)), out)
        plain = load_towers("toyshop-clip", "float32", CPU)(batch)
        # A module that does nothing would pass the above.
        assert (out - plain).abs().max() > 1e-3


@pytest.mark.parametrize("variant", IN_TOWERS)
def test_last_layers_leave_the_first_ones_unchanged(variant, batch):
    whole, last = _towers(variant), _towers(variant, last_layers=1)
    names = set(trainable(last))
    assert names < set(trainable(whole))
    assert all(".layers.1." in name for name in names)
    both = {name.split(".")[1] for name in names}
    assert both == {"text_model", "vision_model"}
    with torch.no_grad():
        before = last.hidden_states(batch)
        module = _moved(last)
        for name, parameter in trainable(last).items():
            parameter.copy_(module[name])
        after = last.hidden_states(batch)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[:, :2], new[:, :2])
        assert not torch.equal(old[:, 2], new[:, 2])


@pytest.mark.parametrize("variant", [v for v in IN_TOWERS if FACTS[v].dropout])
def test_dropout_is_in_the_adapter_and_in_training_alone(variant, batch):
    towers = _towers(variant, dropout=0.5)
    encoder = TowerItemEncoder(towers, NO_ITEMS)
    module = _moved(towers)
    with torch.no_grad():
        encoder.train()
        first, second = (functional_call(towers, module, (batch,)) for _ in range(2))
        assert not torch.equal(first, second)
        encoder.eval()
        first, second = (functional_call(towers, module, (batch,)) for _ in range(2))
        assert torch.equal(first, second)
        without = _towers(variant, dropout=0.0)
        TowerItemEncoder(without, NO_ITEMS).train()
        assert torch.equal(functional_call(without, module, (batch,)), first)


@pytest.mark.parametrize("variant", ["lora", "vera", "randlora"])
def test_random_tensors_come_from_the_seed_alone(variant):
    def tensors(seed: int) -> torch.Tensor:
        towers = _towers(variant, seed=seed)
        every = [*towers.named_parameters(), *towers.named_buffers()]
        return torch.cat([t.detach().flatten().float() for name, t in every if "default" in name])

    torch.manual_seed(5)
    first, state = tensors(1), torch.get_rng_state()
    assert torch.equal(tensors(1), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(tensors(2), first)


def test_settings_that_do_not_fit_are_refused():
    towers = load_towers("toyshop-clip", "float32", CPU)
    with pytest.raises(InputError, match=r"`peft.rank` of oft .*\(64\), but is 5"):
        peft_config(towers, _settings("oft", rank=5))
    with pytest.raises(InputError, match=r"deepest tower \(2\), but is 3"):
        peft_config(towers, _settings("lora", last_layers=3))
