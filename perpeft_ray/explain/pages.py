"""Explanations as self-contained pages, with pictures of items and of attention."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from perpeft_ray.data.images import UnreadableImageError, decode_rgb
from perpeft_ray.data.interactions import Dataset
from perpeft_ray.explain.item import GroupView, ItemExplanation, item_batch
from perpeft_ray.explain.user import UserExplanation
from perpeft_ray.models.trained import TrainedTrial
from perpeft_ray.report.text import write_page

_ROOM = "perpeft_ray.explain"
"""The package with the templates."""
_PLAIN = re.compile(r"[a-z0-9_-]{1,60}")
_SLUG = 40
"""Maximum readable characters of an id in a file name."""
SIDE = 160
"""Longest side of a picture in pixels."""


def write_item_page(explanation: ItemExplanation, trial: TrainedTrial, path: Path) -> None:
    """Write the page of an item, whole or not at all."""
    dataset = trial.dataset
    pixels = item_batch(trial, explanation.item).pixels
    seen = None if pixels is None else pixels[0].numpy()

    def view(group: GroupView) -> dict[str, Any]:
        words = None
        if group.words is not None:
            top = group.words.max()
            shares = zip(explanation.words, group.words, strict=True)
            words = [(word, float(share), float(share / top)) for word, share in shares]
        shown = None
        if group.patches is not None and seen is not None:
            shown = data_uri(heat(seen, group.patches))
        near = [(*_card(dataset, item), cosine) for item, cosine in group.neighbours]
        return {"group": group.group, "users": group.users, "words": words, "heat": shown} | {
            "neighbours": near
        }

    write_page(
        path,
        _ROOM,
        "item.html.jinja",
        trial=trial,
        item=_card(dataset, explanation.item),
        item_id=dataset.items.item_id[explanation.item - 1],
        explanation=explanation,
        views=[view(group) for group in explanation.views],
    )


def write_user_page(explanation: UserExplanation, trial: TrainedTrial, path: Path) -> None:
    """Write the page of a user, whole or not at all."""
    dataset = trial.dataset
    history = set(explanation.history)
    write_page(
        path,
        _ROOM,
        "user.html.jinja",
        trial=trial,
        user_id=trial.split.user_ids[explanation.user],
        explanation=explanation,
        history=[_card(dataset, item) for item in explanation.history],
        test=None if explanation.test_item is None else _card(dataset, explanation.test_item),
        test_known=explanation.test_item in history,
        lists=[
            (
                one,
                [
                    (*_card(dataset, item), score, item == explanation.test_item)
                    for item, score in one.items
                ],
            )
            for one in explanation.lists
        ],
    )


def page_name(kind: str, name: str) -> str:
    """The file name of the page of an item or user, unique per id.

    It is safe and short on any file system, also one that ignores case: an id that is not plain
    gets a hash after a dot, which plain ids do not have.
    """
    if _PLAIN.fullmatch(name):
        return f"{kind}-{name}.html"
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    readable = re.sub(r"[^a-z0-9_-]+", "_", name.lower())[:_SLUG]
    return f"{kind}-{readable}.{digest}.html"


def item_title(dataset: Dataset, item: int) -> str:
    """The title of item 1..I, or its id if it has none."""
    row = dataset.items.iloc[item - 1]
    return str(row.item_id) if pd.isna(row.title) else str(row.title)


def _card(dataset: Dataset, item: int) -> tuple[str, str | None]:
    """An item's title and its image."""
    image = dataset.items.image.iloc[item - 1]
    return item_title(dataset, item), thumbnail(dataset.root, None if pd.isna(image) else image)


def thumbnail(root: Path, path: str | None) -> str | None:
    """An item's image as a data URI, or a placeholder if it cannot be read.

    `path` is relative to `root`; None gives None.
    """
    if path is None:
        return None
    try:
        image = decode_rgb(root / path)
    except UnreadableImageError:
        image = Image.new("RGB", (SIDE, SIDE), "#e3e3e3")
        place = (SIDE // 2, SIDE // 2)
        text = "image cannot\nbe read"
        ImageDraw.Draw(image).text(place, text, "#555555", anchor="mm", align="center")
    image.thumbnail((SIDE, SIDE))
    return data_uri(image)


def heat(pixels: NDArray[np.uint8], weights: NDArray[np.float32]) -> Image.Image:
    """Attention [rows, columns] over the encoder's pixels [3, S, S]: darker means less."""
    image = Image.fromarray(pixels.transpose(1, 2, 0)).resize(
        (SIDE, SIDE), Image.Resampling.NEAREST
    )
    shares = Image.fromarray((weights / weights.max()).astype(np.float32))
    light = np.asarray(shares.resize((SIDE, SIDE), Image.Resampling.BILINEAR)).clip(0, 1)
    dimmed = np.asarray(image) * (0.15 + 0.85 * light[:, :, None])
    return Image.fromarray(dimmed.astype(np.uint8))


def data_uri(image: Image.Image) -> str:
    """A PNG as a data URI, so that a page is self-contained."""
    out = io.BytesIO()
    image.save(out, format="PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")
