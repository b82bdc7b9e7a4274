"""Explanations as pages that need nothing beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from perpeft_ray.data.interactions import Dataset
from perpeft_ray.explain.item import GroupView, ItemExplanation
from perpeft_ray.explain.pictures import data_uri, heat, thumbnail
from perpeft_ray.explain.user import UserExplanation
from perpeft_ray.models.trained import TrainedTrial
from perpeft_ray.results.files import whole_file
from perpeft_ray.train.workspace import open_catalogue


def write_item_page(
    explanation: ItemExplanation, trial: TrainedTrial, dataset: Dataset, path: Path
) -> None:
    """Write the page of an item, whole or not at all."""
    pixels = open_catalogue(trial.workspace).batch(np.array([explanation.item])).pixels
    seen = None if pixels is None else pixels[0].numpy()

    def view(group: GroupView) -> dict[str, Any]:
        tokens = None
        if group.tokens is not None:
            top = group.tokens.max()
            shares = zip(explanation.tokens, group.tokens, strict=True)
            tokens = [(token, float(share), float(share / top)) for token, share in shares]
        shown = None
        if group.patches is not None and seen is not None:
            shown = data_uri(heat(seen, group.patches))
        near = [(*_card(dataset, item), cosine) for item, cosine in group.neighbours]
        return {"group": group.group, "users": group.users, "tokens": tokens, "heat": shown} | {
            "neighbours": near
        }

    _write(
        path,
        "item",
        trial=trial,
        item=_card(dataset, explanation.item),
        item_id=dataset.items.item_id[explanation.item - 1],
        explanation=explanation,
        views=[view(group) for group in explanation.views],
    )


def write_user_page(
    explanation: UserExplanation, trial: TrainedTrial, dataset: Dataset, path: Path
) -> None:
    """Write the page of a user, whole or not at all."""
    history = set(explanation.history)
    _write(
        path,
        "user",
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


def item_title(dataset: Dataset, item: int) -> str:
    """The title of item 1..I, or its id where it has none."""
    row = dataset.items.iloc[item - 1]
    return str(row.item_id) if pd.isna(row.title) else str(row.title)


def _card(dataset: Dataset, item: int) -> tuple[str, str | None]:
    """An item's title and its image."""
    image = dataset.items.image.iloc[item - 1]
    return item_title(dataset, item), thumbnail(dataset.root, None if pd.isna(image) else image)


def _write(path: Path, kind: str, **values: Any) -> None:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("perpeft_ray.explain", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(f"{kind}.html.jinja").render(**values)
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
