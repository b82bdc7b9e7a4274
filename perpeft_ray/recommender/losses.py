"""The training loss of a batch, as a sum over positions (METHOD.md, sections 3 and 5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def sequence_loss_sum(
    outputs: Tensor,
    positive: Tensor,
    negatives: Sequence[tuple[float, Tensor]],
    mask: Tensor,
) -> Tensor:
    """Sum of BCE(positive) + Σ w · BCE(negative) over the positions where `mask` is True.

    `outputs` [B, T, D] are SASRec's, `positive` [B, T, D] the embeddings of the next items,
    `negatives` pairs of a weight w and embeddings [B, T, D]; scores are dot products. `mask` is
    bool [B, T], False at padding. Returns a scalar; the caller divides by the number of positions,
    possibly over many batches.
    """
    losses = F.softplus(-_dot(outputs, positive))  # -log(sigmoid(score))  [B, T]
    for weight, negative in negatives:
        losses = torch.add(losses, F.softplus(_dot(outputs, negative)), alpha=weight)
    return torch.where(mask, losses, 0.0).sum()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=-1)
