"""Embeds items that training never saw, from title and image alone.

They are processed like the study's own items (catalogue store, encoder, a group's module), but
their id embedding is zero.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from perpeft_ray.config import TrialConfig
from perpeft_ray.data.catalogue import build_catalogue
from perpeft_ray.data.images import UnreadableImageError, decode_rgb
from perpeft_ray.data.interactions import Dataset
from perpeft_ray.errors import InputError
from perpeft_ray.models.adapters import read_module
from perpeft_ray.recommender.model import Recommender
from perpeft_ray.train.build import build_model
from perpeft_ray.train.workspace import Workspace

_log = logging.getLogger(__name__)

NewImage = str | Path | Image.Image
"""The path of an image file, or a Pillow image."""


@dataclass(frozen=True)
class NewItem:
    """An item that was not in the training data."""

    item_id: str
    title: str | None
    image: NewImage | None
    """A file or a Pillow image, read by `decode_rgb`; None without an image."""


def embed_new_items(
    config: TrialConfig, encoder: str, items: Sequence[NewItem], modules: Sequence[Path]
) -> Tensor:
    """The items' embeddings under each of P modules, float32 [P, n, D].

    `encoder`: as in `parse_encoder`. `modules`: folders of `write_module`. Loads the encoder once.
    Expects checked items; an unreadable image counts as missing. Raises InputError for an encoder
    that cannot be loaded.
    """
    if config.method == "without_mm":
        return torch.zeros(len(modules), len(items), config.hidden_units)
    with tempfile.TemporaryDirectory(prefix="perpeft-new-items-") as folder:
        model = _model(config, encoder, items, Path(folder))
        embedded = [model.embed_all(read_module(model, config, module)) for module in modules]
        return torch.stack(embedded)[:, 1:]


def _model(
    config: TrialConfig, encoder: str, items: Sequence[NewItem], folder: Path
) -> Recommender:
    """A recommender over these items, with zero id embeddings."""
    from perpeft_ray.encoder.preprocess import FoundationPreprocessor

    catalogue = build_catalogue(_dataset(items, folder), FoundationPreprocessor(encoder), folder)
    workspace = Workspace(
        encoder=encoder,
        split=folder,
        catalogue=catalogue.folder,
        features=folder / "features",
        unfinished=folder,
        stages=folder,
        trials=folder,
        fingerprint="",
        num_users=0,
        num_items=len(items),
    )
    model = build_model(config, workspace, torch.device("cpu")).eval()
    with torch.no_grad():
        model.backbone.item_embedding.weight.zero_()
    return model


def _dataset(items: Sequence[NewItem], folder: Path) -> Dataset:
    images = [_image(item, folder / f"{number}.png") for number, item in enumerate(items)]
    table = pd.DataFrame(
        {
            "item_id": [item.item_id for item in items],
            "title": pd.Series([item.title for item in items], dtype=object),
            "image": pd.Series(images, dtype=object),
        }
    )
    return Dataset(
        uri="new items",
        root=folder,
        interactions=pd.DataFrame(),
        items=table,
        fingerprint="new items",
        items_fingerprint="new items",
    )


def _image(item: NewItem, new: Path) -> str | None:
    """The path of an item's image; an open Pillow image is written to the file `new`."""
    if item.image is None:
        return None
    if not isinstance(item.image, Image.Image):
        return str(Path(item.image).absolute())
    try:
        decode_rgb(item.image).save(new)
    except UnreadableImageError as error:
        _log.warning(
            "the image of item %r cannot be read and counts as missing: %s", item.item_id, error
        )
        return None
    return new.name


def check_new_items(
    config: TrialConfig, items: Sequence[NewItem], *, without_content: bool = False
) -> None:
    """Raise InputError for items that cannot be added to a model with this configuration:

    those with a value of a wrong type, a missing image file, or, unless `without_content`, without
    anything that the model can read.
    """
    for item in items:
        _check_types(item)
    if without_content:
        return
    titles = config.method != "without_text"
    images = config.method != "without_image" and not config.encoder.startswith("text:")
    needed = " or ".join(["a title"] * titles + ["an image that can be read"] * images)
    for item in items:
        if titles and (item.title or "").strip():
            continue
        why = "but has neither" if titles and images else "but has none"
        if images and item.image is not None:
            try:
                decode_rgb(item.image)
                continue
            except UnreadableImageError as error:
                why = f"but has an image that cannot be: {error}"
        raise InputError(f"item {item.item_id!r} must have {needed} for this model, {why}")


def _check_types(item: NewItem) -> None:
    if not isinstance(item, NewItem):
        raise InputError(f"a new item must be a NewItem, but is {item!r}")
    name = f"of item {item.item_id!r}"
    if not isinstance(item.item_id, str):
        raise InputError(f"`item_id` of a new item must be text, but is {item.item_id!r}")
    if not (item.title is None or isinstance(item.title, str)):
        raise InputError(f"`title` {name} must be text or None, but is {item.title!r}")
    image = item.image
    if image is None or isinstance(image, Image.Image):
        return
    if not isinstance(image, str | Path):
        raise InputError(
            f"`image` {name} must be a path, a Pillow image or None, but is a "
            f"{type(image).__name__}"
        )
    if not os.path.isfile(image):  # noqa: PTH113 - pathlib raises for a name that is too long
        raise InputError(f"`image` {name} must be a file, but is {str(image)!r}")
