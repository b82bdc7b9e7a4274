import math

import pytest
import torch
import torch.nn.functional as F

from perpeft_ray.recommender.losses import sequence_loss_sum


def test_a_case_by_hand():
    """Scores 2 (positive), 1 and -1 (negatives, weights 0.75 and 0.25); padding adds nothing."""
    outputs = torch.tensor([[[9.0, 9.0], [1.0, 1.0]]])
    positive = torch.tensor([[[9.0, 9.0], [2.0, 0.0]]])
    inside = torch.tensor([[[9.0, 9.0], [0.5, 0.5]]])
    outside = torch.tensor([[[9.0, 9.0], [0.0, -1.0]]])
    mask = torch.tensor([[False, True]])
    expected = (
        math.log(1 + math.exp(-2.0))
        + 0.75 * math.log(1 + math.exp(1.0))
        + 0.25 * math.log(1 + math.exp(-1.0))
    )
    loss = sequence_loss_sum(outputs, positive, [(0.75, inside), (0.25, outside)], mask)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_equals_torch_bce_and_its_gradient():
    torch.manual_seed(0)
    outputs, positive, negative = torch.randn(3, 4, 6, 8).unbind()
    mask = torch.rand(4, 6) > 0.4
    outputs.requires_grad_()
    sequence_loss_sum(outputs, positive, [(1.0, negative)], mask).backward()
    ours = outputs.grad
    outputs.grad = None
    positive_scores = (outputs * positive).sum(-1)[mask]
    negative_scores = (outputs * negative).sum(-1)[mask]
    loss = F.binary_cross_entropy_with_logits(
        positive_scores, torch.ones_like(positive_scores), reduction="sum"
    ) + F.binary_cross_entropy_with_logits(
        negative_scores, torch.zeros_like(negative_scores), reduction="sum"
    )
    loss.backward()
    torch.testing.assert_close(ours, outputs.grad)


def test_a_weight_shared_between_the_same_negatives_is_one_negative():
    outputs, positive, negative = torch.randn(3, 2, 5, 4).unbind()
    mask = torch.ones(2, 5, dtype=torch.bool)
    whole = sequence_loss_sum(outputs, positive, [(1.0, negative)], mask)
    parts = sequence_loss_sum(outputs, positive, [(0.3, negative), (0.7, negative)], mask)
    torch.testing.assert_close(parts, whole)


def test_far_scores_stay_finite():
    """sigmoid(-1000) is 0 in floats, and its logarithm minus infinity; the loss is 1000."""
    outputs = torch.full((1, 1, 1), 1000.0, requires_grad=True)
    one = torch.ones(1, 1, 1)
    mask = torch.ones(1, 1, dtype=torch.bool)
    loss = sequence_loss_sum(outputs, -one, [(1.0, one)], mask)
    loss.backward()
    assert loss.item() == 2000.0
    assert outputs.grad is not None
    assert outputs.grad.item() == 2.0
