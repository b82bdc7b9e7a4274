"""Each fast path alone, against torch and peft."""

from __future__ import annotations

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perpeft_ray.encoder.fast import sdpa
from perpeft_ray.encoder.fast.dropout import BitDropout, replace_dropout
from perpeft_ray.encoder.fast.lora import compute_in_bfloat16
from perpeft_ray.encoder.fast.patches import PatchProduct, embed_patches_by_product


class Net(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first = nn.Linear(48, 40, bias=bias)
        self.second = nn.Linear(40, 24, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def adapted(dtype: torch.dtype, bias: bool, dropout: float, weights: dict[str, Tensor]) -> Net:
    net = Net(bias).to(dtype)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["first", "second"]
    )
    peft.get_peft_model(net, config)
    for name, module in net.named_modules():
        if isinstance(module, nn.ModuleDict) and name.endswith("_dropout"):
            replace_dropout(module)
    net.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()})
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    compute_in_bfloat16(net)
    return net


def random_weights(bias: bool) -> dict[str, Tensor]:
    net = Net(bias)
    peft.get_peft_model(net, peft.LoraConfig(r=4, target_modules=["first", "second"]))
    return {
        name: (torch.randn_like(tensor) * 0.2).bfloat16().float()
        for name, tensor in net.state_dict().items()
    }


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3, 1.0])
def test_equals_float32_up_to_rounding(bias, dropout):
    torch.manual_seed(0)
    weights = random_weights(bias)
    x = torch.randn(6, 9, 48).bfloat16()
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        net = adapted(dtype, bias, dropout, weights).train()
        assert ("forward" in vars(net.first)) == (dtype == torch.bfloat16)
        torch.manual_seed(3)
        out = net(x.to(dtype))
        trained = [p for p in net.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(out.float().square().mean(), trained)
        assert out.dtype == dtype
        assert all(g.dtype == torch.float32 for g in gradients)
        found.append([out.float(), *gradients])
    for exact, narrow in zip(*found, strict=True):
        assert (exact - narrow).norm() <= 0.02 * exact.norm()


def test_disabled_adapter_is_the_frozen_layer():
    net = adapted(torch.bfloat16, True, 0.0, random_weights(bias=True))
    x = torch.randn(3, 48).bfloat16()
    frozen = net.first.base_layer(x)
    assert not torch.equal(net.first(x), frozen)
    net.first.enable_adapters(False)
    assert torch.equal(net.first(x), frozen)


def test_bit_dropout_against_its_definition():
    torch.manual_seed(0)
    dropout = BitDropout(0.1).train()
    x = torch.full((1000, 1001), 2.0)
    out = dropout(x)
    kept = out != 0
    assert abs(kept.float().mean().item() - 0.9) < 0.001
    torch.testing.assert_close(out[kept].mean().item(), 2 / 0.9, atol=1e-4, rtol=0)
    # Masks of neighbouring elements come from the same word and must still be independent.
    both_dropped = (~kept[:, 0:1000:2] & ~kept[:, 1:1000:2]).float().mean().item()
    assert abs(both_dropped - 0.01) < 0.001
    assert torch.equal(dropout.eval()(x), x)


def test_patches_by_product_are_the_convolution():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, kernel_size=4, stride=4), nn.Conv2d(8, 5, 1, bias=False))
    pixels = torch.randn(2, 3, 18, 16, requires_grad=True)  # two rows of pixels are left over
    expected = model(pixels)
    (of_expected,) = torch.autograd.grad(expected.square().sum(), pixels)
    names = list(model.state_dict())
    embed_patches_by_product(model)
    assert isinstance(model[0], PatchProduct)
    found = model(pixels)
    (of_found,) = torch.autograd.grad(found.square().sum(), pixels)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(of_found, of_expected)
    assert list(model.state_dict()) == names


def test_other_convolutions_stay():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 2, stride=2, groups=2))
    embed_patches_by_product(model)
    assert not any(isinstance(module, PatchProduct) for module in model)


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
@pytest.mark.parametrize("length", [7, 40, 90])
def test_equals_attention_of_torch(kind, length):
    torch.manual_seed(0)
    q, k, v = qkv = [torch.randn(2, 4, length, 8).bfloat16().requires_grad_() for _ in range(3)]
    mask = {
        "none": None,
        "bool": torch.rand(2, 1, length, length) < 0.7 + torch.eye(length),
        "float": torch.randn(1, 4, length, length),
    }[kind]
    ours = sdpa.attend(q, k, v, mask, 0.3)
    assert ours.grad_fn is not None
    assert "ScaledDot" not in type(ours.grad_fn).__name__
    added = mask if mask is None or kind == "bool" else mask.double()
    exact = F.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), attn_mask=added, scale=0.3
    )
    torch.testing.assert_close(ours.double(), exact, rtol=0.03, atol=0.03)
    gradient = torch.randn(ours.shape).bfloat16()
    of_ours = torch.autograd.grad(ours, qkv, gradient)
    of_exact = torch.autograd.grad(exact, qkv, gradient.double())
    for found, expected in zip(of_ours, of_exact, strict=True):
        assert (found - expected).norm() <= 0.02 * expected.norm()
