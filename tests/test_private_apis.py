"""What the package uses of libraries that is not theirs to keep: listed, and still there."""

from __future__ import annotations

import re
from pathlib import Path

import peft
import pytest
import torch
from ray.air.execution._internal.actor_manager import RayActorManager
from transformers import CLIPConfig, CLIPModel

ROOT = Path(__file__).parents[1]
LISTED = {
    ("study/tuning.py", "_internal"),
    ("encoder/fast/sdpa.py", "_attn_implementation"),
    ("encoder/fast/sdpa.py", "_softmax_backward_data"),
}
OURS = {"_mirror", "_fetch", "_asdict", "_core"}
"""Members of `StudyFolder`, a method of named tuples, and part of a name in others' pickles."""


def test_no_other_private_name_of_a_library_is_used() -> None:
    package = ROOT / "perpeft_ray"
    used = {
        (str(path.relative_to(package)), name)
        for path in package.rglob("*.py")
        for owner, name in re.findall(r"(\w+)\.(_[a-z]\w*)", path.read_text(encoding="utf-8"))
        if owner not in ("self", "cls") and name not in OURS
    }
    assert used == LISTED


@pytest.mark.parametrize(
    "module", ["study/tuning.py", "sdpa.py", "lora.py", "clip.py", "prefix.py"]
)
def test_contributing_lists_them(module: str) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert module in text.partition("## Private APIs")[2].partition("\n## ")[0]


def test_ray_tells_of_failed_actors_by_the_methods_that_are_wrapped() -> None:
    for name in ("_actor_start_failed", "_actor_task_failed"):
        assert callable(getattr(RayActorManager, name))


def test_torch_has_the_gradient_of_softmax() -> None:
    scores = torch.randn(3, 5, requires_grad=True)
    weights, gradient = scores.softmax(-1), torch.randn(3, 5)
    weights.backward(gradient)
    found = torch._softmax_backward_data(gradient, weights.detach(), -1, torch.float32)
    torch.testing.assert_close(found, scores.grad)


def test_pefts_lora_layer_has_what_its_replacement_reads() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0"]))
    layer = model[0]
    assert isinstance(layer, peft.tuners.lora.Linear)
    for name in ("lora_A", "lora_B", "lora_dropout", "scaling"):
        assert "default" in getattr(layer, name)
    assert (layer.disable_adapters, layer.merged) == (False, False)


def test_clip_has_the_modules_that_are_called_one_by_one() -> None:
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig())
    assert model.config._attn_implementation == "sdpa"
    modules = dict(model.named_modules())
    for name in (
        "text_model.embeddings",
        "text_model.final_layer_norm",
        "text_projection",
        "vision_model.embeddings",
        "vision_model.pre_layrnorm",
        "vision_model.post_layernorm",
        "visual_projection",
        *(f"text_model.encoder.layers.11.{part}" for part in ("self_attn.q_proj", "mlp")),
        *(f"vision_model.encoder.layers.11.layer_norm{number}" for number in (1, 2)),
    ):
        assert name in modules
