"""How an encoder wants its items: pixels by its own image processor, tokens by its tokenizer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perpeft_ray.encoder.foundation import EncoderSource, parse_encoder
from perpeft_ray.errors import InputError

MAX_TOKENS = 128
"""Longest title in tokens where the model would take more."""


class FoundationPreprocessor:
    """Implements `perpeft_ray.data.item_arrays.ItemPreprocessor` for an encoder.

    Pixels are those of transformers' Pillow image processor before it rescales and normalises, so
    that they can be kept as uint8; `DualTowers` does the rest in the training step.
    """

    def __init__(self, name: str) -> None:
        from transformers import AutoTokenizer

        source = parse_encoder(name)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(source.path)
            self._images: Any = image_processor(source.path) if source.kind == "dual" else None
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise InputError(f"`encoder` {name} cannot be loaded: {first}") from error
        self.max_tokens = _max_tokens(source, self._tokenizer)
        self.pad_token_id = int(self._tokenizer.pad_token_id)
        self.image_size = 0 if self._images is None else _image_size(self._images)
        self.fingerprint = self._fingerprint()

    def image(self, image: Image.Image) -> NDArray[np.uint8]:
        """uint8 [3, S, S] of an RGB image, resized and cropped as the encoder was trained."""
        out = self._images(
            images=image, do_rescale=False, do_normalize=False, return_tensors="np"
        ).pixel_values[0]
        return np.asarray(out, dtype=np.uint8)

    def tokens(self, titles: list[str]) -> list[list[int]]:
        """Token ids of each title with the encoder's special tokens, cut to `max_tokens`."""
        if not titles:
            return []
        return self._tokenizer(titles, truncation=True, max_length=self.max_tokens)["input_ids"]

    def _fingerprint(self) -> str:
        """Hash of all that decides pixels and tokens: settings and a probe of the tokenizer."""
        images = None
        if self._images is not None:
            settings = self._images.to_dict()
            images = {key: settings[key] for key in sorted(settings) if key != "_processor_class"}
        vocabulary = hashlib.sha256(
            json.dumps(sorted(self._tokenizer.get_vocab().items())).encode()
        ).hexdigest()
        record = json.dumps(
            [images, vocabulary, self.max_tokens, type(self._tokenizer).__name__],
            sort_keys=True,
            default=str,
        )
        return hashlib.sha256(record.encode()).hexdigest()[:16]


def image_processor(path: str) -> Any:
    """The encoder's image processor on the Pillow backend; torchvision is not needed."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(path, backend="pil")


def encoder_fingerprint(name: str) -> str:
    """Hash of an encoder's configuration and weights (a local folder), or of its hub name."""
    source = parse_encoder(name)
    folder = Path(source.path)
    digest = hashlib.sha256(source.kind.encode())
    if folder.is_dir():
        for file in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    else:
        digest.update(source.path.encode())
    return digest.hexdigest()[:16]


def _image_size(processor: Any) -> int:
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    height, width = size["height"], size["width"]
    if height != width:
        raise InputError(f"`encoder` must take square images, but takes {height} x {width}")
    return int(height)


def _max_tokens(source: EncoderSource, tokenizer: Any) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source.path)
    positions = int(getattr(config, "text_config", config).max_position_embeddings)
    return min(positions, int(tokenizer.model_max_length), MAX_TOKENS)
