import torch
import torch.nn.functional as F

from perpeft_ray.recommender.projector import Projector


def test_equals_its_formula():
    torch.manual_seed(0)
    projector = Projector(in_features=6, hidden_units=4)
    first, norm, _, second, last = projector.layers
    x = torch.randn(3, 5, 6)
    hidden = F.relu(F.layer_norm(x @ first.weight.T + first.bias, (8,), norm.weight, norm.bias))
    expected = F.layer_norm(hidden @ second.weight.T + second.bias, (4,), last.weight, last.bias)
    torch.testing.assert_close(projector(x), expected)


def test_size_on_clip_vit_b32():
    """1024 → 64 → 32: two matrices with biases and two norms."""
    parameters = sum(p.numel() for p in Projector(1024, 32).parameters())
    assert parameters == (1024 * 64 + 64) + 2 * 64 + (64 * 32 + 32) + 2 * 32
