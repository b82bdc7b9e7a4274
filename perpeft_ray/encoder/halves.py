"""The text half and the image half of an encoder: features and pooled hidden states of each.

A half of a dual encoder (CLIP, SigLIP, Chinese-CLIP, ALIGN) returns what `get_text_features` or
`get_image_features` return; a half of a pair returns its model's own pooled output. Hidden states
are pooled like the features: each family has its own summary token.
Letters: n items, L tokens, P patches, W width.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from perpeft_ray.data.catalogue import ItemBatch
from perpeft_ray.encoder.fast import clip
from perpeft_ray.encoder.targets import layer_stacks

TextPooling = Literal["end", "last", "first", "mean"]
"""The token that summarises a title: end of text, the very last, the first, or none."""

_TEXT_POOLING: dict[str, TextPooling] = {"clip": "end", "siglip": "last"}
"""By model type of dual encoders; all others have a BERT, which pools at its first token."""


_Given = TypeVar("_Given", contravariant=True)


class Half(Protocol[_Given]):
    """An encoder of titles, or of images."""

    tower: nn.Module
    """Its modules."""
    model: Any
    """The transformers model with these modules, possibly a dual encoder."""
    width: int
    """Width of hidden states; 0 for convolutional towers, whose states differ in width."""
    layers: int
    fast: bool
    """Whether features may be computed without calling all of the model's own modules."""

    @property
    def out_features(self) -> int:
        """Width of the features."""
        ...

    def features(self, given: _Given, /) -> Tensor:
        """[n, out_features]."""
        ...

    def states(self, given: _Given, /) -> Tensor:
        """The pooled state of the embedding output and of every layer, [n, layers + 1, W]."""
        ...


TextHalf = Half[ItemBatch]
"""Reads titles from a batch of items."""
ImageHalf = Half[Tensor]
"""Returns normalised pixels of a batch of items, [n, 3, S, S]."""


class DualText:
    """Titles by a model with `get_text_features`."""

    def __init__(self, model: Any) -> None:
        self.fast = True
        self.model = model
        self.tower = model.text_model
        config = model.config.text_config
        self.width = int(config.hidden_size)
        self.layers = int(config.num_hidden_layers)
        self.pooling = _TEXT_POOLING.get(model.config.model_type, "first")
        self._end = getattr(config, "eos_token_id", None)

    @cached_property
    def out_features(self) -> int:
        """Width of the features, found by encoding one token."""
        ids = torch.zeros(1, 1, dtype=torch.int64, device=self.model.device)
        with torch.no_grad():
            return int(self.model.get_text_features(ids).pooler_output.shape[-1])

    def features(self, batch: ItemBatch) -> Tensor:
        """The projected features."""
        if self.fast and clip.runs(self.model):
            place = self._place(batch.token_ids)
            assert isinstance(place, Tensor)
            return clip.text_features(self.model, batch.token_ids, place)
        return self.model.get_text_features(**self._inputs(batch)).pooler_output  # type: ignore[no-any-return]  # nn.Module's call is untyped

    def states(self, batch: ItemBatch) -> Tensor:
        """States at the token that the features are read from."""
        out = self.model.get_text_features(**self._inputs(batch), output_hidden_states=True)
        rows = torch.arange(len(batch.token_ids), device=batch.token_ids.device)
        place = self._place(batch.token_ids)
        return torch.stack([state[rows, place] for state in out.hidden_states], dim=1)

    def _inputs(self, batch: ItemBatch) -> dict[str, Tensor]:
        inputs = {"input_ids": batch.token_ids}
        # CLIP is causal and pooled at the end of text, so it never sees later padding. SigLIP is
        # trained with padding; its preprocessor pads to the full length.
        if self.pooling == "first":
            inputs["attention_mask"] = batch.attention_mask
        return inputs

    def _place(self, ids: Tensor) -> Tensor | int:
        if self.pooling == "end":
            if self._end is not None and self._end != 2:
                return (ids == self._end).int().argmax(dim=1)  # type: ignore[no-any-return]  # nn.Module's call is untyped
            return ids.argmax(dim=1)  # as in transformers: a configured 2 means the highest id
        return -1 if self.pooling == "last" else 0


class DualImage:
    """Images by a model with `get_image_features`."""

    def __init__(self, model: Any) -> None:
        self.fast = True
        self.model = model
        self.tower = model.vision_model
        self.config = model.config.vision_config
        self.width, self.layers = _state_sizes(model.vision_model, self.config)

    @cached_property
    def out_features(self) -> int:
        """Width of the features; a blank image is encoded to see it."""
        with torch.no_grad():
            return int(self.features(_blank(self.model, self.config)).shape[-1])

    def features(self, pixels: Tensor) -> Tensor:
        """The projected features."""
        if self.fast and clip.runs(self.model):
            return clip.image_features(self.model, pixels)
        return self.model.get_image_features(pixel_values=pixels).pooler_output  # type: ignore[no-any-return]  # nn.Module's call is untyped

    def states(self, pixels: Tensor) -> Tensor:
        """States at the class token, or their mean over patches if there is none."""
        out = self.model.get_image_features(pixel_values=pixels, output_hidden_states=True)
        return _pooled_states(out.hidden_states, pixels, self.config)


class LoneText:
    """Titles by a text encoder alone (BERT-like): the mean over tokens, or the first token."""

    def __init__(self, model: Any, pooling: Literal["mean", "first"]) -> None:
        self.fast = True
        self.model = self.tower = model
        self.pooling = pooling
        self.width = self.out_features = int(model.config.hidden_size)
        self.layers = int(model.config.num_hidden_layers)

    def features(self, batch: ItemBatch) -> Tensor:
        """The pooled last state."""
        out = self.model(input_ids=batch.token_ids, attention_mask=batch.attention_mask)
        return self._pool(out.last_hidden_state, batch.attention_mask)

    def states(self, batch: ItemBatch) -> Tensor:
        """Pooled as the features are."""
        out = self.model(
            input_ids=batch.token_ids,
            attention_mask=batch.attention_mask,
            output_hidden_states=True,
        )
        return torch.stack([self._pool(s, batch.attention_mask) for s in out.hidden_states], dim=1)

    def _pool(self, states: Tensor, mask: Tensor) -> Tensor:
        if self.pooling == "first":
            return states[:, 0].float()
        weights = mask.unsqueeze(-1).float()  # [n, L, 1]
        return (states.float() * weights).sum(1) / weights.sum(1).clamp_min(1.0)


class LoneImage:
    """Images by a vision model alone: its class token, or the mean over patches without one."""

    def __init__(self, model: Any) -> None:
        self.fast = True
        self.model = self.tower = model
        self.width, self.layers = _state_sizes(model, model.config)

    @cached_property
    def out_features(self) -> int:
        """Width of the features; a blank image is encoded to see it."""
        with torch.no_grad():
            return int(self.features(_blank(self.model, self.model.config)).shape[-1])

    def features(self, pixels: Tensor) -> Tensor:
        """The pooled last state."""
        state = self.model(pixel_values=pixels).last_hidden_state
        if state.dim() == 4:  # a convolutional model: [n, W, rows, columns]
            return state.float().mean(dim=(2, 3))  # type: ignore[no-any-return]  # nn.Module's call is untyped
        return _pooled(state, pixels, self.model.config).float()

    def states(self, pixels: Tensor) -> Tensor:
        """Pooled as the features are."""
        out = self.model(pixel_values=pixels, output_hidden_states=True)
        return _pooled_states(out.hidden_states, pixels, self.model.config)


def _state_sizes(model: Any, config: Any) -> tuple[int, int]:
    """Width and number of a vision model's layers; zeros without transformer layers."""
    if model is None or not layer_stacks(model):
        return 0, 0
    return int(config.hidden_size), int(config.num_hidden_layers)


def _blank(model: Any, config: Any) -> Tensor:
    """A blank image: as large as the position embeddings ask, else small."""
    size = int(config.image_size) if hasattr(config, "patch_size") else 64
    return torch.zeros(1, 3, size, size, dtype=model.dtype, device=model.device)


def _pooled_states(states: tuple[Tensor, ...], pixels: Tensor, config: Any) -> Tensor:
    return torch.stack([_pooled(state, pixels, config) for state in states], dim=1)


def _pooled(state: Tensor, pixels: Tensor, config: Any) -> Tensor:
    """[n, tokens, W] -> [n, W]: the class token, which precedes the patches, or their mean."""
    rows, columns = (size // int(config.patch_size) for size in pixels.shape[-2:])
    return state.mean(dim=1) if state.shape[1] == rows * columns else state[:, 0]
