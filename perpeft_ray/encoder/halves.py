"""The text half and the image half of an encoder: features and pooled hidden states of each.

A half of a dual encoder (CLIP, SigLIP, Chinese-CLIP, ALIGN) returns what `get_text_features` or
`get_image_features` return; a half of a pair returns its model's own pooled output. Hidden states
are pooled like the features: each family has its own summary token. Every half has

- `model`, the transformers model, possibly a dual encoder, and `tower`, its own modules of it;
- `width` of hidden states (0 for convolutional towers, whose states differ in width), `layers`;
- `fast`: whether features may be computed without calling all of the model's own modules.

Letters: n items, L tokens, P patches, W width.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from perpeft_ray.data.catalogue import ItemBatch
from perpeft_ray.encoder.fast import clip
from perpeft_ray.encoder.targets import layer_stacks

TextPooling = Literal["end", "last", "first", "mean"]
"""The token that summarises a title: end of text, the very last, the first, or none."""

_TEXT_POOLING: dict[str, TextPooling] = {"clip": "end", "siglip": "last"}
"""By model type of dual encoders; all others have a BERT, which pools at its first token."""


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


TextHalf = DualText | LoneText


class ImageHalf:
    """Images by a model with `get_image_features`, or by a vision model alone.

    The latter's features are its class token, or the mean over patches without one.
    """

    def __init__(self, model: Any) -> None:
        self.fast = True
        self.model = model
        self._dual = hasattr(model, "get_image_features")
        self.tower = model.vision_model if self._dual else model
        self._config = model.config.vision_config if self._dual else model.config
        self.width = self.layers = 0
        if layer_stacks(self.tower):
            self.width = int(self._config.hidden_size)
            self.layers = int(self._config.num_hidden_layers)

    @cached_property
    def out_features(self) -> int:
        """Width of the features; a blank image is encoded to see it."""
        # As large as the position embeddings ask, else small.
        size = int(self._config.image_size) if hasattr(self._config, "patch_size") else 64
        model = self.model
        blank = torch.zeros(1, 3, size, size, dtype=model.dtype, device=model.device)
        with torch.no_grad():
            return int(self.features(blank).shape[-1])

    def features(self, pixels: Tensor) -> Tensor:
        """The projected features, or the pooled last state, [n, out_features]."""
        if self.has_patches:
            return clip.image_features(self.model, self.patches(pixels))
        out = self._output(pixels)
        if self._dual:
            return out.pooler_output  # type: ignore[no-any-return]  # nn.Module's call is untyped
        state = out.last_hidden_state
        if state.dim() == 4:  # a convolutional model: [n, W, rows, columns]
            return state.float().mean(dim=(2, 3))  # type: ignore[no-any-return]  # nn.Module's call is untyped
        return self._pooled(state, pixels).float()

    @property
    def has_patches(self) -> bool:
        """Whether `features` can be computed from `patches`."""
        return self.fast and clip.runs(self.model)

    def patches(self, pixels: Tensor) -> Tensor:
        """The images as they enter the layers, [n, T, W], the same under all modules."""
        return clip.patches(self.model, pixels)

    def features_of_patches(self, patches: Tensor) -> Tensor:
        """`features` of the images that `patches` embedded."""
        return clip.image_features(self.model, patches)

    def states(self, pixels: Tensor) -> Tensor:
        """States at the class token, or their mean over patches, [n, layers + 1, W]."""
        states = self._output(pixels, output_hidden_states=True).hidden_states
        return torch.stack([self._pooled(state, pixels) for state in states], dim=1)

    def _output(self, pixels: Tensor, **options: bool) -> Any:
        call = self.model.get_image_features if self._dual else self.model
        return call(pixel_values=pixels, **options)

    def _pooled(self, state: Tensor, pixels: Tensor) -> Tensor:
        """[n, tokens, W] -> [n, W]: the class token, which precedes the patches, or their mean."""
        rows, columns = (size // int(self._config.patch_size) for size in pixels.shape[-2:])
        return state.mean(dim=1) if state.shape[1] == rows * columns else state[:, 0]
