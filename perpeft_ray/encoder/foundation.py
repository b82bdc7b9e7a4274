"""Frozen towers from transformers: a dual encoder, a pair of models, or text alone.

Letters: n items, L tokens, S pixels a side, W a tower's width.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from perpeft_ray.config import Dtype
from perpeft_ray.data.catalogue import ItemBatch
from perpeft_ray.encoder import fast
from perpeft_ray.encoder.halves import DualText, ImageHalf, LoneText, TextHalf
from perpeft_ray.encoder.preprocess import pixel_scaling
from perpeft_ray.encoder.rows import by_length
from perpeft_ray.encoder.source import (
    POOLING,
    EncoderSource,
    encoder_file,
    parse_encoder,
    prepare_hub,
    reading,
)
from perpeft_ray.errors import InputError

NARROW = 128
"""Least width of the text tower for bfloat16 under dtype `auto`; narrower ones use float32. At this
width a bfloat16 training step takes 0.6 of a float32 step's time on a CPU with avx512_bf16
(benchmarks/small_clip.py). The effect on NDCG@20 was measured at width 64 only: below the noise of
15 seeds (studies/bfloat16.py)."""

Modality = Literal["text", "image"]


def compute_dtype(name: Dtype, device: torch.device, width: int) -> torch.dtype:
    """The dtype of frozen weights.

    `auto` is bfloat16 if the device multiplies it natively and the text tower's `width` is at
    least `NARROW`. Below that, conversions cost more than they save.
    """
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.cpu.get_capabilities()
        native = bool(able.get("avx512_bf16") or able.get("amx_tile"))
    return torch.bfloat16 if native and width >= NARROW else torch.float32


def resolved_dtype(encoder: str, asked: Dtype, device: torch.device) -> str:
    """The dtype that `asked` resolves to for an encoder on a device, for cache names.

    `float32` or `bfloat16`; for a pair possibly both. Reads only the encoder's config.json.
    """
    source = parse_encoder(encoder)
    paths = {source.path, source.image_path or source.path}
    names = {str(compute_dtype(asked, device, _width(path))) for path in paths}
    return "+".join(sorted(name.removeprefix("torch.") for name in names))


def _width(path: str) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    return int(getattr(getattr(config, "text_config", config), "hidden_size", NARROW))


class Towers(nn.Module):
    """A frozen encoder of items: a text half, an image half, or both, over one `model`.

    Items without an image (or title) have zeros in that half of the output. `model` holds all
    weights and takes the adapters; the halves refer to its modules.
    """

    pixel_scale: Tensor
    pixel_shift: Tensor

    def __init__(
        self,
        model: nn.Module,
        text: TextHalf | None,
        image: ImageHalf | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.text, self.image = text, image
        self.dtype = next(model.parameters()).dtype
        self.register_buffer("pixel_scale", torch.ones(3, 1, 1), persistent=False)
        self.register_buffer("pixel_shift", torch.zeros(3, 1, 1), persistent=False)

    @property
    def image_features(self) -> int:
        """Width of the image half of `forward`'s output."""
        return self.image.out_features if self.image else 0

    @property
    def text_features(self) -> int:
        """Width of the text half of `forward`'s output."""
        return self.text.out_features if self.text else 0

    @property
    def out_features(self) -> int:
        """Width of `forward`'s output: image half, then text half."""
        return self.image_features + self.text_features

    def forward(self, batch: ItemBatch) -> Tensor:
        """Features, float32 [n, out_features]."""
        image = self.images(batch) if self.image else None
        text = by_length(batch, self.text.features) if self.text else None
        return self.joined(batch, image, text)

    def images(self, batch: ItemBatch) -> Tensor:
        """The image half's features, [n, image_features]."""
        assert self.image is not None
        if batch.patches is not None:
            return self.image.features_of_patches(batch.patches)
        return self.image.features(self.pixels(batch))

    def embedded(self, batch: ItemBatch) -> ItemBatch:
        """The batch with its images embedded, where that is the same under all modules."""
        if self.image is None or batch.pixels is None or not self.image.has_patches:
            return batch
        return replace(batch, patches=self.image.patches(self.pixels(batch)))

    def joined(self, batch: ItemBatch, image: Tensor | None, text: Tensor | None) -> Tensor:
        """`forward`'s output from the features of the present halves, [n, ...] each."""
        halves = []
        if image is not None:
            halves.append(_where(batch.has_image, image))
        if text is not None:
            halves.append(_where(batch.has_title, text))
        return torch.cat(halves, dim=-1)

    def state_sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Width and number of layers of the text and image towers' states; zeros without images.

        Raises InputError if a tower has no states of one width.
        """
        assert self.text is not None
        if self.image is None:
            return (self.text.width, self.text.layers), (0, 0)
        if not self.image.width:
            raise InputError(
                "`peft.variant` iisan needs hidden states of one width, but the encoder's image "
                "tower is convolutional"
            )
        return (self.text.width, self.text.layers), (self.image.width, self.image.layers)

    def hidden_states(self, batch: ItemBatch) -> tuple[Tensor, Tensor | None]:
        """One state per layer and item: text [n, layers + 1, W], image [n, layers + 1, W] or None
        without images; layer 0 is the embedding output. float32. Sizes as `state_sizes`.
        """
        assert self.text is not None
        texts = _where(batch.has_title, self.text.states(batch))
        if self.image is None:
            return texts, None
        return texts, _where(batch.has_image, self.image.states(self.pixels(batch)))

    def scale_pixels(self, scale: Sequence[float], shift: Sequence[float]) -> None:
        """Set what `pixels` applies per channel, x * scale + shift; nothing at first."""
        self.pixel_scale = torch.tensor(scale).view(3, 1, 1)
        self.pixel_shift = torch.tensor(shift).view(3, 1, 1)

    def pixels(self, batch: ItemBatch) -> Tensor:
        """Normalised pixels in the towers' dtype, [n, 3, S, S]."""
        assert batch.pixels is not None
        if batch.pixels.is_cuda and fast.enabled():
            from perpeft_ray.encoder.fast import kernels

            return kernels.scale_pixels(
                batch.pixels, self.pixel_scale, self.pixel_shift, self.dtype
            )
        # In place: 512 items of 224 pixels are 294 MB in float32.
        pixels = batch.pixels.to(torch.float32, copy=True)
        return pixels.mul_(self.pixel_scale).add_(self.pixel_shift).to(self.dtype)


def load_towers(
    name: str, dtype: Dtype, device: torch.device, modality: Modality | None = None
) -> Towers:
    """Frozen towers in evaluation mode on `device`, weights in `compute_dtype`.

    `name` as in `parse_encoder`. `modality` restricts an encoder with two towers to one.
    Reads weights from safetensors only, never from pickles. Raises InputError if the model cannot
    be loaded or is not of the family.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped; of weights being read; a study has its own progress

    def load(path: str) -> Any:
        with reading(name):
            compute = compute_dtype(dtype, device, _width(path))
            model, loaded = AutoModel.from_pretrained(
                path,
                dtype=compute,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        _check_complete(name, loaded["missing_keys"])
        fast.speed_up_model(model, compute, device)
        return model

    source = parse_encoder(name)
    prepare_hub(source)
    towers = _build(name, source, load, modality)
    if source.image_path is not None:
        with reading(name):
            scale, shift = pixel_scaling(source.image_path)
        towers.scale_pixels(scale, shift)
    return towers.eval().to(device)


def skeleton(name: str) -> Towers:
    """The towers of an encoder without weights (on the meta device), for inspection.

    Reads only the encoder's config.json.
    """
    from transformers import AutoConfig, AutoModel

    def make(path: str) -> Any:
        with reading(name), torch.device("meta"):
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            return AutoModel.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]  # transformers leaves it untyped

    source = parse_encoder(name)
    prepare_hub(source)
    return _build(name, source, make, None)


def _build(
    name: str,
    source: EncoderSource,
    load: Callable[[str], Any],
    modality: Modality | None,
) -> Towers:
    text: TextHalf | None = None
    image: ImageHalf | None = None
    if source.kind == "dual":
        model = load(source.path)
        is_dual = all(hasattr(model, part) for part in _DUAL)
        if not is_dual or model.config.model_type == "siglip2":
            raise InputError(
                "`encoder` must be a dual encoder of square images, or text:PATH, or "
                f"pair:TEXT_PATH,IMAGE_PATH, but {name} is a {model.config.model_type}"
            )
        if modality == "text":
            model.vision_model = None
        else:
            image = ImageHalf(model)
        if modality == "image":
            model.text_model = None
        else:
            text = DualText(model)
    else:
        model = nn.ModuleDict()
        if modality != "image" or source.image_path is None:
            model["text"] = load(source.path)
            _check_text(name, model["text"])
            text = LoneText(model["text"], _pooling(source.path))
        if modality != "text" and source.image_path is not None:
            model["image"] = load(source.image_path)
            _check_image(name, model["image"])
            image = ImageHalf(model["image"])
    model.requires_grad_(False)
    return Towers(model, text, image)


def _check_complete(name: str, missing: Iterable[str]) -> None:
    """Raise InputError if transformers would invent weights that the encoder lacks.

    Poolers may be missing: they are not used.
    """
    made_up = sorted(key for key in missing if "pooler" not in key)
    if made_up:
        raise InputError(
            f"`encoder` {name} must have weights for all its parameters, but not for "
            f"{len(made_up)} (the first is {made_up[0]})"
        )


_DUAL = ("get_text_features", "get_image_features", "text_model", "vision_model")
"""Attributes that identify a dual encoder."""


def _check_text(name: str, model: Any) -> None:
    """Raise InputError if a model does not encode text as one state per token."""
    kind = model.config.model_type
    takes = inspect.signature(model.forward).parameters
    is_text = model.main_input_name == "input_ids" and "attention_mask" in takes
    if hasattr(model, "get_text_features"):
        what = f"{kind}, a dual encoder, whose path is given without text:"
    elif "decoder_input_ids" in takes:
        what = f"{kind}, which has a decoder"
    elif not is_text:
        what = f"{kind}, which does not read texts"
    elif not all(hasattr(model.config, size) for size in ("hidden_size", "num_hidden_layers")):
        what = f"{kind}, which does not say how wide it is"
    else:
        return
    raise InputError(
        f"`encoder` must have a text encoder alone (such as BERT) for titles, but {name} is {what}"
    )


def _check_image(name: str, model: Any) -> None:
    """Raise InputError if a model does not encode images as states."""
    if model.main_input_name != "pixel_values" or hasattr(model, "get_image_features"):
        raise InputError(
            "`encoder` pair:TEXT,IMAGE must have a vision model alone (such as ViT) for images, "
            f"but {name} has a {model.config.model_type}"
        )


def _pooling(path: str) -> Literal["mean", "first"]:
    """The pooling that sentence-transformers recorded beside the model; mean by default."""
    record = encoder_file(path, POOLING)
    if record is not None and json.loads(record.read_text()).get("pooling_mode_cls_token"):
        return "first"
    return "mean"


def _where(present: Tensor, values: Tensor) -> Tensor:
    """`values` as float32, with rows of missing modalities zeroed."""
    shape = (-1,) + (1,) * (values.dim() - 1)
    return values.float() * present.view(shape)
