"""Frozen foundation towers from transformers: a dual encoder, or a text encoder alone.

Letters: n items, L tokens, S pixels a side, W a tower's width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from perpeft_ray.config import Dtype
from perpeft_ray.data.catalogue import ItemBatch
from perpeft_ray.errors import InputError

TOYSHOP_CLIP = Path(__file__).parent / "toyshop_clip"

NARROW = 256
"""Towers narrower than this compute in float32 under dtype `auto`: at width 64 a training step in
bfloat16 took twice the time of one in float32 (one core, avx512_bf16)."""

Modality = Literal["text", "image"]

_LENGTH_PARTS = 6
"""Parts that a batch's titles are encoded in where their lengths differ."""
_LEAST_PART = 32
"""Titles in a part at least."""
_EVEN = 1.3
"""Titles whose longest is at most so many times their mean are encoded together."""


@dataclass(frozen=True)
class EncoderSource:
    """Where an encoder comes from and what it is, parsed from its name on the command line."""

    kind: Literal["dual", "text"]
    path: str
    """A local folder or a hub name, as `from_pretrained` takes it."""


def parse_encoder(name: str) -> EncoderSource:
    """`toyshop-clip`, `text:PATH_OR_NAME`, or the path or hub name of a CLIP-family model."""
    if name == "toyshop-clip":
        return EncoderSource("dual", str(TOYSHOP_CLIP))
    kind: Literal["dual", "text"] = "text" if name.startswith("text:") else "dual"
    path = name.removeprefix("text:")
    if not path:
        raise InputError(f"`encoder` must name a folder or a hub model, but is {name!r}")
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).exists()
    if looks_local:
        folder = Path(path).expanduser()
        if not (folder / "config.json").is_file():
            raise InputError(f"`encoder` must be a folder with a config.json, but is {path}")
        path = str(folder.resolve())
    return EncoderSource(kind, path)


def compute_dtype(name: Dtype, device: torch.device, width: int) -> torch.dtype:
    """The dtype of frozen weights.

    `auto` is bfloat16 where the device multiplies it natively and the towers are wide enough for
    the matrix products to dominate; below `NARROW`, conversions cost more than they save.
    """
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native and width >= NARROW else torch.float32


class DualTowers(nn.Module):
    """A CLIP-family model: images and titles into one space.

    `model` is any transformers model with `get_text_features` and `get_image_features`.
    Items without an image (or title) have zeros in that half of the output. `modality` leaves only
    one half, and only the tower that makes it.
    """

    pixel_scale: Tensor
    pixel_shift: Tensor

    def __init__(
        self,
        model: Any,
        mean: Sequence[float],
        std: Sequence[float],
        modality: Modality | None = None,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.modality = modality
        if modality == "text":
            model.vision_model = None
        elif modality == "image":
            model.text_model = None
        config = model.config
        dim = int(config.projection_dim)
        self.text_features = self.image_features = dim
        self.text_width = int(config.text_config.hidden_size)
        self.image_width = int(config.vision_config.hidden_size)
        self.text_layers = int(config.text_config.num_hidden_layers)
        self.image_layers = int(config.vision_config.num_hidden_layers)
        # With causal attention and pooling at the end-of-text token, later padding is never seen.
        self.needs_mask = config.model_type != "clip"
        self.eos_token_id = getattr(config.text_config, "eos_token_id", None)
        scale = 1.0 / (255.0 * torch.tensor(std))
        self.register_buffer("pixel_scale", scale[:, None, None], persistent=False)
        shift = -torch.tensor(mean) / torch.tensor(std)
        self.register_buffer("pixel_shift", shift[:, None, None], persistent=False)

    @property
    def out_features(self) -> int:
        """Width of `forward`'s output: image half, then text half."""
        image = 0 if self.modality == "text" else self.image_features
        text = 0 if self.modality == "image" else self.text_features
        return image + text

    def forward(self, batch: ItemBatch) -> Tensor:
        """Projected features, float32 [n, out_features]."""
        halves = []
        if self.modality != "text":
            image = self.model.get_image_features(pixel_values=self._pixels(batch)).pooler_output
            halves.append(_where(batch.has_image, image))
        if self.modality != "image":
            halves.append(_where(batch.has_title, by_length(batch, self._text_features)))
        return torch.cat(halves, dim=-1)

    def hidden_states(self, batch: ItemBatch) -> tuple[Tensor, Tensor]:
        """One state a layer and item: text [n, text_layers + 1, W] at the end-of-text token, image
        [n, image_layers + 1, W] at the class token; layer 0 is the embedding output. float32."""
        text_inputs = self._text_inputs(batch)
        text = self.model.get_text_features(**text_inputs, output_hidden_states=True)
        image = self.model.get_image_features(
            pixel_values=self._pixels(batch), output_hidden_states=True
        )
        ids = text_inputs["input_ids"]
        if self.eos_token_id is not None and self.eos_token_id != 2:
            last = (ids == self.eos_token_id).int().argmax(dim=1)
        else:  # as transformers: configurations that say 2 mean the highest token id
            last = ids.argmax(dim=1)
        rows = torch.arange(len(ids), device=ids.device)
        texts = torch.stack([state[rows, last] for state in text.hidden_states], dim=1)
        images = torch.stack([state[:, 0] for state in image.hidden_states], dim=1)
        return (_where(batch.has_title, texts), _where(batch.has_image, images))

    def _text_features(self, batch: ItemBatch) -> Tensor:
        return self.model.get_text_features(**self._text_inputs(batch)).pooler_output

    def _text_inputs(self, batch: ItemBatch) -> dict[str, Tensor]:
        inputs = {"input_ids": batch.token_ids}
        if self.needs_mask:
            inputs["attention_mask"] = batch.attention_mask
        return inputs

    def _pixels(self, batch: ItemBatch) -> Tensor:
        assert batch.pixels is not None
        dtype = self.model.dtype
        return (batch.pixels * self.pixel_scale + self.pixel_shift).to(dtype)


class TextTower(nn.Module):
    """A text encoder alone (BERT-like), pooled by the mean over tokens or the first token."""

    image_features = 0
    image_width = 0
    image_layers = 0

    def __init__(self, model: Any, pooling: Literal["mean", "first"]) -> None:
        super().__init__()
        self.model: Any = model
        self.pooling = pooling
        config = model.config
        self.text_features = self.text_width = int(config.hidden_size)
        self.text_layers = int(config.num_hidden_layers)

    @property
    def out_features(self) -> int:
        """Width of `forward`'s output."""
        return self.text_features

    def forward(self, batch: ItemBatch) -> Tensor:
        """Pooled features, float32 [n, text_features]."""
        return _where(batch.has_title, by_length(batch, self._encode))

    def hidden_states(self, batch: ItemBatch) -> tuple[Tensor, None]:
        """Pooled state of every layer, float32 [n, text_layers + 1, W]; no images."""
        out = self.model(
            input_ids=batch.token_ids,
            attention_mask=batch.attention_mask,
            output_hidden_states=True,
        )
        pooled = [self._pool(state, batch.attention_mask) for state in out.hidden_states]
        return _where(batch.has_title, torch.stack(pooled, dim=1)), None

    def _encode(self, batch: ItemBatch) -> Tensor:
        out = self.model(input_ids=batch.token_ids, attention_mask=batch.attention_mask)
        return self._pool(out.last_hidden_state, batch.attention_mask)

    def _pool(self, states: Tensor, mask: Tensor) -> Tensor:
        if self.pooling == "first":
            return states[:, 0].float()
        weights = mask.unsqueeze(-1).float()  # [n, L, 1]
        return (states.float() * weights).sum(1) / weights.sum(1).clamp_min(1.0)


Towers = DualTowers | TextTower


def load_towers(
    name: str, dtype: Dtype, device: torch.device, modality: Modality | None = None
) -> Towers:
    """Frozen towers in evaluation mode on `device`, weights in `compute_dtype`.

    `name` as in `parse_encoder`. `modality`: the only one of a dual encoder that is used.
    Weights are read from safetensors only, never from pickles.
    Raises InputError where the model cannot be loaded or is not of the family.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # of weights being read; a study has its own progress
    source = parse_encoder(name)
    try:
        config = AutoConfig.from_pretrained(source.path)
        width = getattr(config, "text_config", config).hidden_size
        model = AutoModel.from_pretrained(
            source.path, dtype=compute_dtype(dtype, device, width), use_safetensors=True
        )
    except (OSError, ValueError, AttributeError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"`encoder` {name} cannot be loaded: {first}") from error
    model.requires_grad_(False)
    towers: Towers
    if source.kind == "text":
        towers = TextTower(model, _pooling(source.path))
    else:
        if not hasattr(model, "get_image_features"):
            raise InputError(
                "`encoder` must be a CLIP-family model, or text:PATH for a text encoder, but "
                f"{name} is a {model.config.model_type}"
            )
        from perpeft_ray.encoder.preprocess import image_processor

        processor = image_processor(source.path)
        towers = DualTowers(model, processor.image_mean, processor.image_std, modality)
    return towers.eval().to(device)


def by_length(batch: ItemBatch, encode: Callable[[ItemBatch], Tensor]) -> Tensor:
    """`encode` on titles of similar length together, each part trimmed to its longest: [n, ...].

    Where titles differ much in length most tokens of a batch would be padding. Rows come back in
    the batch's order; only the text of the parts is set.
    """
    lengths = batch.attention_mask.sum(dim=1)  # [n]
    parts = min(_LENGTH_PARTS, len(lengths) // _LEAST_PART)
    if parts < 2 or lengths.max() <= _EVEN * lengths.float().mean():
        return encode(batch)
    order = lengths.argsort()
    encoded = []
    for rows in order.tensor_split(parts):
        longest = int(lengths[rows[-1]])
        encoded.append(
            encode(
                ItemBatch(
                    pixels=None,
                    token_ids=batch.token_ids[rows, :longest],
                    attention_mask=batch.attention_mask[rows, :longest],
                    has_image=batch.has_image[rows],
                    has_title=batch.has_title[rows],
                )
            )
        )
    return torch.cat(encoded)[order.argsort()]


def _pooling(path: str) -> Literal["mean", "first"]:
    """The pooling that sentence-transformers recorded beside the model; mean where it did not."""
    record = Path(path) / "1_Pooling" / "config.json"
    if record.is_file() and json.loads(record.read_text()).get("pooling_mode_cls_token"):
        return "first"
    return "mean"


def _where(present: Tensor, values: Tensor) -> Tensor:
    """`values` as float32 with the rows of absent modalities zeroed."""
    shape = (-1,) + (1,) * (values.dim() - 1)
    return values.float() * present.view(shape)
