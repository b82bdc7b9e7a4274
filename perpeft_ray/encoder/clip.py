"""CLIP's two towers, run for their features alone: what transformers computes, with less work.

The modules are the model's own, adapters and hooks included; only their order of calls is here.
Of the last layer's output a feature reads one token, so only that token goes through what comes
after attention (a third of a training step at 2 layers, 7 % at 12). The activation keeps one
tensor for its gradient in place of two.
Letters: n items, L positions, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_SLOPE = 1.702


def runs(model: Any) -> bool:
    """Whether this module computes the features of a model; not where its attention shows weights.

    Attention other than SDPA is asked for by those who look at it (`attention.py`).
    """
    config = model.config
    return config.model_type == "clip" and config._attn_implementation == "sdpa"


def text_features(model: Any, ids: Tensor, place: Tensor) -> Tensor:
    """`get_text_features` of token ids [n, L] whose features are read at `place` [n]."""
    tower = model.text_model
    state = _layers(tower.encoder.layers, tower.embeddings(input_ids=ids), place)
    return model.text_projection(tower.final_layer_norm(state))


def image_features(model: Any, pixels: Tensor) -> Tensor:
    """`get_image_features` of normalised pixels [n, 3, S, S], read at the class token."""
    tower = model.vision_model
    embedded = tower.pre_layrnorm(tower.embeddings(pixels))
    state = _layers(tower.encoder.layers, embedded, None)
    return model.visual_projection(tower.post_layernorm(state))


def _layers(layers: Any, x: Tensor, place: Tensor | None) -> Tensor:
    """States [n, L, W] through all layers; what is at `place` after the last, [n, W].

    Attention is causal where there is a `place`; without one the first token is read.
    """
    for layer in layers[:-1]:
        attended = _attend(layer, x, is_causal=place is not None)
        x = _feed_forward(layer, x + attended)
    seen = None
    if place is not None:
        seen = torch.arange(x.shape[1], device=x.device) <= place[:, None]  # [n, L]
        seen = seen[:, None, None]

    def pick(states: Tensor) -> Tensor:
        if place is None:
            return states[:, :1]
        return states[torch.arange(len(states), device=states.device), place].unsqueeze(1)

    last = layers[-1]
    attended = _attend(last, x, pick=pick, attn_mask=seen)
    return _feed_forward(last, pick(x) + attended)[:, 0]


def _attend(
    layer: Any, x: Tensor, pick: Callable[[Tensor], Tensor] | None = None, **mask: Any
) -> Tensor:
    attention = layer.self_attn
    h = layer.layer_norm1(x)
    heads = (*h.shape[:1], -1, attention.num_heads, attention.head_dim)
    # In training all queries are projected: the adapter's dropout draws what it always did.
    if pick is None:
        q = attention.q_proj(h)
    else:
        q = pick(attention.q_proj(h)) if torch.is_grad_enabled() else attention.q_proj(pick(h))
    q, k, v = (
        projected.view(heads).transpose(1, 2)
        for projected in (q, attention.k_proj(h), attention.v_proj(h))
    )  # [n, heads, positions, W / heads]
    out = F.scaled_dot_product_attention(q, k, v, scale=attention.scale, **mask)
    return attention.out_proj(out.transpose(1, 2).flatten(2))


def _feed_forward(layer: Any, x: Tensor) -> Tensor:
    inner = layer.mlp.fc1(layer.layer_norm2(x))
    activation = layer.mlp.activation_fn
    quick = type(activation).__name__ == "QuickGELUActivation"
    return x + layer.mlp.fc2(_QuickGelu.apply(inner) if quick else activation(inner))


class _QuickGelu(torch.autograd.Function):
    """x * sigmoid(1.702 x) in one buffer; its gradient in two passes from x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        return (x * _SLOPE).sigmoid_().mul_(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient, x * _SLOPE)
