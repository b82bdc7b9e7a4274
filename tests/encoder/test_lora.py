"""LoRA on bfloat16 towers against the same in float32."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import Tensor, nn

from perpeft_ray.encoder.fast.dropout import BitDropout, replace_dropout
from perpeft_ray.encoder.fast.lora import compute_in_bfloat16


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


def test_kept_is_what_dropout_keeps():
    dropout, x = BitDropout(0.25), torch.rand(50, 7) + 1
    torch.manual_seed(0)
    kept = dropout.kept(x)
    torch.manual_seed(0)
    assert kept is not None
    assert torch.equal((dropout(x) != 0).to(x.dtype), kept)
    assert dropout.scale == pytest.approx(4 / 3)
