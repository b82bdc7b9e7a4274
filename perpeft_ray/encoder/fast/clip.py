"""A faster forward pass of CLIP's two towers, with the same features as transformers.

Calls the model's own modules, adapters and hooks included. A feature reads one token of the last
layer, so only that token passes through what follows attention (saves a third of a training step
at 2 layers, 7 % at 12). The activation keeps one tensor for its gradient instead of two.
Letters: n items, L positions, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from perpeft_ray.encoder.fast import enabled
from perpeft_ray.encoder.fast.sdpa import attend

_SLOPE = 1.702


def runs(model: Any) -> bool:
    """Whether this module computes the features of a model."""
    return enabled() and model.config.model_type == "clip"


def text_features(model: Any, ids: Tensor, place: Tensor) -> Tensor:
    """`get_text_features` of token ids [n, L], read at position `place` [n]."""
    tower = model.text_model
    state = _layers(tower.encoder.layers, tower.embeddings(input_ids=ids), place)
    return model.text_projection(tower.final_layer_norm(state))  # type: ignore[no-any-return]  # nn.Module's call is untyped


def patches(model: Any, pixels: Tensor) -> Tensor:
    """Normalised pixels [n, 3, S, S] -> embedded class token and patches [n, T, W].

    No adapter changes this part of the tower.
    """
    return model.vision_model.embeddings(pixels)  # type: ignore[no-any-return]  # nn.Module's call is untyped


def image_features(model: Any, patches: Tensor) -> Tensor:
    """`get_image_features` of the images that `patches` embedded, read at the class token."""
    tower = model.vision_model
    state = _layers(tower.encoder.layers, tower.pre_layrnorm(patches), None)
    return model.visual_projection(tower.post_layernorm(state))  # type: ignore[no-any-return]  # nn.Module's call is untyped


class QuickGelu(nn.Module):
    """x * sigmoid(1.702 x), as transformers' QuickGELUActivation, with one tensor kept."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return _QuickGelu.apply(x)  # type: ignore[no-any-return, no-untyped-call]  # nn.Module's call is untyped; torch leaves it untyped


def replace_activation(model: nn.Module) -> None:
    """Replace transformers' QuickGELU by `QuickGelu`."""
    for module in model.modules():
        if type(getattr(module, "activation_fn", None)).__name__ == "QuickGELUActivation":
            module.activation_fn = QuickGelu()


def _layers(layers: Any, x: Tensor, place: Tensor | None) -> Tensor:
    """Run states [n, L, W] through all layers; return the state at `place`, [n, W].

    Attention is causal if `place` is given; without it, reads the first token.
    """
    for layer in layers[:-1]:
        x = layer(x, None, is_causal=place is not None)
    if place is None:
        return _last(layers[-1], x, lambda states: states[:, :1], None)
    rows = torch.arange(len(x), device=x.device)
    seen = torch.arange(x.shape[1], device=x.device) <= place[:, None]  # [n, L]
    return _last(layers[-1], x, lambda states: states[rows, place][:, None], seen[:, None, None])


def _last(layer: Any, x: Tensor, pick: Callable[[Tensor], Tensor], mask: Tensor | None) -> Tensor:
    """The last layer at the one token that `pick` takes from states: [n, L, W] -> [n, W]."""
    attention = layer.self_attn
    h = layer.layer_norm1(x)
    # Project all queries, so that the adapter's dropout draws the same numbers as ever.
    q = pick(attention.q_proj(h))
    heads = (len(x), -1, attention.num_heads, attention.head_dim)
    q, k, v = (
        projected.view(heads).transpose(1, 2)
        for projected in (q, attention.k_proj(h), attention.v_proj(h))
    )  # [n, heads, positions, W / heads]
    out = attend(q, k, v, mask, attention.scale)
    x = pick(x) + attention.out_proj(out.transpose(1, 2).flatten(2))
    return (x + layer.mlp(layer.layer_norm2(x)))[:, 0]  # type: ignore[no-any-return]  # nn.Module's call is untyped


class _QuickGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        if x.is_cuda:
            from perpeft_ray.encoder.fast import kernels

            return kernels.quick_gelu(x)
        return (x * _SLOPE).sigmoid_().mul_(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if x.is_cuda:
            from perpeft_ray.encoder.fast import kernels

            return kernels.quick_gelu_backward(gradient, x)
        return torch.ops.aten.silu_backward(gradient, x * _SLOPE)  # type: ignore[no-any-return]  # torch says Any
