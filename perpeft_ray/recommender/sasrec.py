"""SASRec: self-attentive sequential recommendation over given item embeddings.

Follows Kang and McAuley (ICDM 2018) in the form that PerPEFT uses (METHOD.md, section 3).
B users per batch, T positions, D hidden units, H heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-8
"""LayerNorm's epsilon, as everywhere in the original."""


class SASRec(nn.Module):
    """A causal transformer over the last T items of a user.

    `num_items` is I; `length` is T; `hidden_units` is D, a multiple of `heads`. The model owns the
    id embedding, `item_embedding` [I+1, D] with a zero row 0 for padding. The caller looks items
    up, since an item's embedding also depends on the user's group.
    """

    def __init__(
        self,
        num_items: int,
        hidden_units: int,
        length: int,
        blocks: int,
        heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.scale = math.sqrt(hidden_units)
        self.dropout = dropout
        self.item_embedding = nn.Embedding(num_items + 1, hidden_units, padding_idx=0)
        self.position_embedding = nn.Embedding(length + 1, hidden_units, padding_idx=0)
        self.blocks = nn.ModuleList(_Block(hidden_units, heads, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(hidden_units, eps=_EPS)
        for embedding in (self.item_embedding, self.position_embedding):
            nn.init.xavier_normal_(embedding.weight)
            nn.init.zeros_(embedding.weight[0].detach())

    def forward(self, embedded: Tensor, padding: Tensor) -> Tensor:
        """Outputs [B, T, D]; position t has seen the inputs up to t and scores the item after it.

        `embedded` [B, T, D] are item embeddings before scaling, padded on the left; `padding` is
        bool [B, T], True at padding, where `embedded` counts as zero whatever it holds. As in the
        original, padding is a zero input that may be attended to, so a row of only padding has
        finite outputs.
        """
        # Positions are 1..T; padding, which has position 0, is zero in both embeddings.
        x = torch.add(self.position_embedding.weight[1:], embedded, alpha=self.scale)
        x = x.masked_fill(padding.unsqueeze(-1), 0.0)
        x = F.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)  # type: ignore[no-any-return]  # nn.Module's call is untyped


class _Block(nn.Module):
    """Attention and a position-wise network; only the query is normalised, and it is the residual.

    A 1-wide convolution is a linear layer on each position.
    """

    def __init__(self, hidden_units: int, heads: int, dropout: float) -> None:
        super().__init__()
        D = hidden_units
        self.heads = heads
        self.dropout = dropout
        self.query_norm = nn.LayerNorm(D, eps=_EPS)
        self.query = nn.Linear(D, D)
        # No bias on the keys: softmax cancels it, so its gradient would be rounding noise, which
        # Adam turns into full steps that differ with the number of workers.
        self.key_value = nn.Linear(D, 2 * D, bias=False)
        self.value_bias = nn.Parameter(torch.zeros(D))
        self.attended = nn.Linear(D, D)
        self.forward_norm = nn.LayerNorm(D, eps=_EPS)
        self.inner = nn.Linear(D, D)
        self.outer = nn.Linear(D, D)
        # The original draws the three projections as one [3D, D] matrix, hence this deviation.
        with torch.no_grad():
            projections = nn.init.xavier_normal_(torch.empty(3 * D, D))
            self.query.weight.copy_(projections[:D])
            self.key_value.weight.copy_(projections[D:])
        for layer in (self.attended, self.inner, self.outer):
            nn.init.xavier_normal_(layer.weight)
        for layer in (self.query, self.attended):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs [B, T, D] to outputs [B, T, D]."""
        query = self.query_norm(x)
        x = query + self._attend(query, x)
        x = self.forward_norm(x)
        inner = F.dropout(F.relu(self.inner(x)), self.dropout, self.training)
        return x + F.dropout(self.outer(inner), self.dropout, self.training)

    def _attend(self, query: Tensor, x: Tensor) -> Tensor:
        B, T, D = x.shape
        split = (B, T, -1, self.heads, D // self.heads)
        q = self.query(query).view(split).permute(2, 0, 3, 1, 4)  # [1, B, H, T, D/H]
        bias = F.pad(self.value_bias, (D, 0))
        kv = F.linear(x, self.key_value.weight, bias).view(split)
        kv = kv.permute(2, 0, 3, 1, 4)  # [2, B, H, T, D/H]
        attended = F.scaled_dot_product_attention(
            q[0], kv[0], kv[1], dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )  # [B, H, T, D/H]
        return self.attended(attended.transpose(1, 2).reshape(B, T, D))  # type: ignore[no-any-return]  # nn.Module's call is untyped
