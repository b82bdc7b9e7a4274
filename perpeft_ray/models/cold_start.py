"""Cold start: evaluates users and items that first appear after training.

The paper does not measure this; the protocol is ours. A point in time, the *cut*, divides the
interactions. Training sees only those before it, and only their items. An *event* is an interaction
after the cut with a history: the user's interactions before it. A user or item is *new* if it has
no interaction before the cut. Events are ranked as in a study: candidates are all items, also new
ones, minus the history, and ties count against the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from perpeft_ray.data.folders import link_or_copy
from perpeft_ray.data.interactions import INTERACTIONS_FILE, ITEMS_FILE, Dataset
from perpeft_ray.errors import InputError
from perpeft_ray.models.loaded import LoadedModel
from perpeft_ray.models.new_items import NewItem

SLICES = (
    "known user, known item",
    "new user, known item",
    "new item",
    "new item among new items",
)
"""The last slice ranks new items only among each other: it shows whether content places them right,
apart from whether they compete with items that have an id embedding."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A dataset divided at a point in time."""

    cut: int
    """The first timestamp after training."""
    training: pd.DataFrame
    """Interactions before the cut."""
    known_items: pd.DataFrame
    """Items of these interactions; rows of the dataset's items."""
    new_items: pd.DataFrame
    """The other items; they are candidates from the cut on."""
    events: pd.DataFrame
    """user_id, item_id (the target), history (list of item ids), new_user, new_item."""


def hold_out(dataset: Dataset, quantile: float, events_per_user: int) -> HeldOut:
    """Divide a dataset at a quantile of its interactions' timestamps.

    `events_per_user`: takes only each user's first events, so that a new user has at most this many
    interactions. Raises InputError if one side of the cut is empty.
    """
    if not 0.0 < quantile < 1.0:
        raise InputError(f"`quantile` must be between 0 and 1, but is {quantile}")
    # Stable: the order of rows breaks ties, as in the leave-one-out split.
    ordered = dataset.interactions.sort_values("timestamp", kind="stable", ignore_index=True)
    cut = int(ordered.timestamp.quantile(quantile, interpolation="higher"))
    training = ordered[ordered.timestamp < cut]
    known = dataset.items.item_id.isin(training.item_id)
    events = _events(ordered, cut, set(training.user_id), events_per_user)
    if training.empty or events.empty:
        raise InputError(
            f"`{dataset.uri}` must have interactions before and after the cut, but at `quantile` "
            f"{quantile} has {len(training)} before it and {len(events)} events after it"
        )
    events["new_item"] = ~events.item_id.isin(training.item_id)
    return HeldOut(cut, training, dataset.items[known], dataset.items[~known], events)


def write_training_folder(held_out: HeldOut, root: Path, folder: Path) -> None:
    """Write what training may see as a data folder; `root` is the dataset's folder.

    Images are hard links if the file system allows it, else copies.
    """
    held_out.training.to_parquet(folder / INTERACTIONS_FILE, index=False)
    held_out.known_items.to_parquet(folder / ITEMS_FILE, index=False)
    for image in held_out.known_items.image.dropna():
        target = folder / image
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            link_or_copy(root / image, target)


def rank_events(model: LoadedModel, held_out: HeldOut, root: Path) -> pd.DataFrame:
    """The rank of every event's target; adds the new items to the model.

    Columns: slice, user_id, rank (0-based); one row per event and slice.
    """
    model.add_items(
        [
            NewItem(row.item_id, row.title, None if row.image is None else root / row.image)
            for row in held_out.new_items.itertuples()
        ],
        without_content=True,  # a dataset may have such items, and they are candidates too
    )
    events = held_out.events
    histories = [model.indices(history) for history in events.history]
    targets = model.indices(events.item_id.tolist())
    new_item, new_user = events.new_item.to_numpy(), events.new_user.to_numpy()
    new_indices = np.sort(model.indices(held_out.new_items.item_id.tolist()))
    parts = (
        (~new_item & ~new_user, None),
        (~new_item & new_user, None),
        (new_item, None),
        (new_item, new_indices),
    )
    frames = []
    for name, (chosen, candidates) in zip(SLICES, parts, strict=True):
        rows = np.flatnonzero(chosen)
        ranks = model.ranks([histories[row] for row in rows], targets[rows], candidates)
        users = events.user_id.to_numpy()[rows]
        frames.append(pd.DataFrame({"slice": name, "user_id": users, "rank": ranks}))
    return pd.concat(frames, ignore_index=True)


def _events(ordered: pd.DataFrame, cut: int, known_users: set[str], per_user: int) -> pd.DataFrame:
    rows = []
    for user, own in ordered.groupby("user_id", sort=False):
        items = own.item_id.tolist()
        first = max(1, int((own.timestamp < cut).sum()))  # an event has a history
        rows += [
            (user, items[place], items[:place], user not in known_users)
            for place in range(first, min(first + per_user, len(items)))
        ]
    return pd.DataFrame(rows, columns=["user_id", "item_id", "history", "new_user"])
