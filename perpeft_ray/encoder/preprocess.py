"""An encoder's own preprocessing: pixels by its image processor, tokens by its tokenizer."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perpeft_ray.encoder.source import parse_encoder, prepare_hub, reading
from perpeft_ray.errors import InputError

MAX_TOKENS = 128
"""Longest title in tokens, also for models that take more."""


class FoundationPreprocessor:
    """Implements `perpeft_ray.data.item_arrays.ItemPreprocessor` for an encoder.

    Pixels come from transformers' Pillow image processor before it rescales and normalises, so
    that they can be stored as uint8; `Towers` normalise them in the training step.
    """

    def __init__(self, name: str) -> None:
        from transformers import AutoConfig, AutoTokenizer

        source = parse_encoder(name)
        prepare_hub(source)
        with reading(name):
            # The configuration first: its error says most about a missing model.
            self._config: Any = AutoConfig.from_pretrained(source.path, trust_remote_code=False)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                source.path, trust_remote_code=False
            )
            self._images: Any = image_processor(source.image_path) if source.image_path else None
        if self._tokenizer.pad_token_id is None:
            raise InputError(f"`encoder` must have a tokenizer that can pad, but is {name}")
        if set(self._tokenizer.get_vocab()) <= set(self._tokenizer.all_special_tokens):
            raise InputError(
                f"`encoder` must have a tokenizer with a vocabulary, but {name} has none"
            )
        self.max_tokens = _max_tokens(self._config, self._tokenizer)
        # SigLIP reads its last token and was trained on titles padded to the full length.
        self._padding = "max_length" if self._config.model_type == "siglip" else False
        self.pad_token_id = int(self._tokenizer.pad_token_id)
        self._unscaled = {"do_rescale": False, "do_normalize": False}
        if hasattr(self._images, "include_top"):
            self._unscaled["include_top"] = False  # EfficientNet's name for a second normalisation
        self.image_size = 0 if self._images is None else _image_size(self._images)
        self.fingerprint = self._fingerprint()

    def image(self, image: Image.Image) -> NDArray[np.uint8]:
        """uint8 [3, S, S] of an RGB image, resized and cropped as in the encoder's training."""
        out = self._images(images=image, **self._unscaled, return_tensors="np").pixel_values[0]
        return np.asarray(out, dtype=np.uint8)

    def tokens(self, titles: list[str]) -> list[list[int]]:
        """Token ids of each title with the encoder's special tokens, cut to `max_tokens`."""
        if not titles:
            return []
        return self._tokenizer(  # type: ignore[no-any-return]  # the tokenizer is of any class
            titles, truncation=True, max_length=self.max_tokens, padding=self._padding
        )["input_ids"]

    def _fingerprint(self) -> str:
        """Hash of what determines pixels and tokens: settings and probed tokenizer output."""
        images = None
        if self._images is not None:
            settings = self._images.to_dict()
            images = {key: settings[key] for key in sorted(settings) if key != "_processor_class"}
        vocabulary = hashlib.sha256(
            json.dumps(sorted(self._tokenizer.get_vocab().items())).encode()
        ).hexdigest()
        record = json.dumps(
            [images, vocabulary, self.max_tokens, self._padding, type(self._tokenizer).__name__],
            sort_keys=True,
            default=str,
        )
        return hashlib.sha256(record.encode()).hexdigest()[:16]


def image_processor(path: str) -> Any:
    """The encoder's image processor on the Pillow backend; torchvision is not needed."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(path, backend="pil")  # type: ignore[no-untyped-call]  # transformers leaves it untyped


def pixel_scaling(path: str) -> tuple[list[float], list[float]]:
    """Scale and shift per channel of the image processor's normalisation after resizing.

    Found from a black and a white image.
    """
    processor = image_processor(path)
    size = _image_size(processor)

    def channels(value: int) -> NDArray[np.float64]:
        image = Image.new("RGB", (size, size), (value,) * 3)
        pixels = processor(images=image, return_tensors="np").pixel_values[0]
        return np.asarray(pixels[:, 0, 0], dtype=np.float64)

    shift = channels(0)
    scale = (channels(255) - shift) / 255.0
    return scale.tolist(), shift.tolist()


def _image_size(processor: Any) -> int:
    crop = getattr(processor, "do_center_crop", False)
    size = dict(processor.crop_size if crop else processor.size)
    if "height" not in size or size["height"] != size["width"]:
        taken = " x ".join(str(size[side]) for side in ("height", "width") if side in size)
        raise InputError(f"`encoder` must take square images, but takes {taken or size}")
    return int(size["height"])


def _max_tokens(config: Any, tokenizer: Any) -> int:
    # Models with relative positions have no limit; XLNet has -1.
    text = getattr(config, "text_config", config)
    positions = int(getattr(text, "max_position_embeddings", None) or MAX_TOKENS)
    limits = (positions, int(tokenizer.model_max_length), MAX_TOKENS)
    return min(limit for limit in limits if limit > 0)
