"""All fast paths of the encoder together against plain transformers and peft."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from perpeft_ray.config import (
    FACTS,
    Dtype,
    PeftSettings,
    StudyConfig,
    TrainSettings,
    Variant,
)
from perpeft_ray.encoder import fast
from perpeft_ray.encoder.foundation import load_towers
from perpeft_ray.encoder.variants import AdapterSettings, add_adapter, trainable
from perpeft_ray.train.build import build_model
from perpeft_ray.train.workspace import Workspace, prepare
from tests.encoder.tiny_models import write_tiny_model
from tests.small_shop import write_small_shop

CPU = torch.device("cpu")
ITEMS = np.array([1, 4, 5, 17, 29, 30])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Workspace]:
    """A small shop with a tiny encoder of a family, prepared once."""
    folder = tmp_path_factory.mktemp("fast")
    shop, prepared = write_small_shop(folder / "shop"), dict[str, Workspace]()

    def of(family: str) -> Workspace:
        if family not in prepared:
            name = "toyshop-clip"
            if family != name:
                name = write_tiny_model(family, folder / family)
            prepared[family] = prepare(f"parquet:{shop}", name, folder / "cache")
        return prepared[family]

    return of


def features_and_gradients(
    workspace: Workspace, variant: Variant, dtype: Dtype, last_layers: int | None
) -> list[Tensor]:
    """Features of some items in training and out of it, and the gradient of every parameter."""
    peft = PeftSettings(dropout=0.0, last_layers=last_layers)  # masks are drawn in other ways
    study = StudyConfig(peft=peft, train=TrainSettings(dtype=dtype))
    config = replace(study.trial("global", seed=0, variant=variant), encoder=workspace.encoder)
    tower = build_model(config, workspace, CPU).tower
    assert tower is not None
    encoder = tower.encoder.train()
    generator = torch.Generator().manual_seed(1)
    module = {
        name: (p.detach() + 0.1 * torch.randn(p.shape, generator=generator)).requires_grad_()
        for name, p in sorted(trainable(encoder).items())
    }
    inputs = encoder.inputs(ITEMS)
    found = functional_call(encoder, module, inputs)
    gradients = torch.autograd.grad(found.square().mean(), list(module.values()))
    with torch.no_grad():
        alone = functional_call(encoder.eval(), module, inputs)
        shared = functional_call(encoder, module, encoder.shared(inputs))
    return [found.detach(), alone, shared, *gradients]


@pytest.mark.parametrize(
    ("family", "variant", "dtype", "last_layers"),
    [
        *(
            ("clip", variant, "float32", None)
            for variant in ("lora", "ia3", "vera", "oft", "ln_tuning", "bitfit")
        ),
        *((family, "lora", "float32", 1) for family in ("toyshop-clip", "clip", "chinese_clip")),
        *((family, "lora", "float32", 2) for family in ("siglip", "align", "text", "pair")),
        *(("clip", variant, "bfloat16", 1) for variant in ("lora", "rslora", "dora", "ia3")),
        *((family, "lora", "bfloat16", None) for family in ("chinese_clip", "siglip")),
    ],
)
def test_fast_paths_equal_transformers_and_peft(
    workspace: Callable[[str], Workspace],
    family: str,
    variant: Variant,
    dtype: Dtype,
    last_layers: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = features_and_gradients(workspace(family), variant, dtype, last_layers)
    monkeypatch.setenv("PERPEFT_FAST", "0")
    expected = features_and_gradients(workspace(family), variant, dtype, last_layers)
    if dtype == "float32":
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        return
    one, other = (torch.cat([tensor.flatten() for tensor in t]) for t in (found, expected))
    assert (one - other).norm() <= 0.03 * other.norm()


@pytest.mark.parametrize("variant", ["lora", "vera"])
def test_switch_turns_all_fast_paths_off(
    variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = write_tiny_model("clip", tmp_path)

    def ours(dtype: Dtype) -> set[str]:
        towers = load_towers(name, dtype, CPU)
        facts = FACTS[variant]
        rank, dropout = 4 if facts.rank else None, 0.1 if facts.dropout else None
        add_adapter(towers, AdapterSettings(variant, rank, dropout, None, 0))
        modules = list(towers.model.modules())
        replaced = {"forward" for module in modules if "forward" in vars(module)}
        config: Any = towers.model.config
        attention = {config._attn_implementation} - {"sdpa"}
        return (
            replaced
            | attention
            | {type(m).__name__ for m in modules if type(m).__module__.startswith(fast.__name__)}
        )

    assert ours("bfloat16") >= {"QuickGelu", "sdpa_of_short_sequences"}
    monkeypatch.setenv("PERPEFT_FAST", "0")
    assert ours("bfloat16") == ours("float32") == set()
