"""Which method serves users and items that first appear after training? Not in the paper.

Small (one catalogue, the figures in results/findings/cold_start.md):

    python studies/cold_start.py

Full:

    python studies/cold_start.py --datasets toyshop:101 toyshop:102 toyshop:103 --seeds 0 1 2
        --train.epochs 12 --train.personal-epochs 12 --train.validate-every 3

Protocol. A quantile in time, the *cut*, divides the interactions. Those before the cut, with only
their items, form a data set. An ordinary study trains every method on it with the same learning
rates, and each method takes its best by leave-one-out validation before the cut. Each model is then
exported and loaded, and new items are added by title and image, without an id embedding. An *event*
is an interaction after the cut with a history: the user's interactions before it; the first five of
each user count. A user or item is *new* if it has no interaction before the cut. A new user gets
the group of the nearest centroid, again for every event, from the history up to it. Events are
ranked as in a study: candidates are all items, also new ones, minus the history, and ties count
against the target. A user counts once per slice, with the mean over events and seeds. Intervals and
tests are over users, as in all studies.

Scientific: the method. Nuisance: the learning rate, the seed. Fixed: the rest; groups and
conditioning weight are what a search found on the former toyshop:0.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rich.console import Console

from perpeft_ray.cli import parse, run, run_and_show
from perpeft_ray.config import (
    GroupingSettings,
    LossSettings,
    Method,
    PeftSettings,
    SearchSettings,
    StudyConfig,
    TrainSettings,
    Variant,
)
from perpeft_ray.data.interactions import INTERACTIONS_FILE, ITEMS_FILE, Dataset
from perpeft_ray.errors import InputError

if TYPE_CHECKING:
    from perpeft_ray.models.loaded import LoadedModel

METHODS: tuple[Method, ...] = ("without_mm", "global", "perpeft")
SLICES = (
    "known user, known item",
    "new user, known item",
    "new item",
    "new item among new items",
)
"""The last slice ranks new items only among each other: it shows whether content places them right,
apart from whether they compete with items that have an id embedding."""


@dataclass(frozen=True)
class ColdStart:
    """Data, cut and training."""

    datasets: tuple[str, ...] = ("toyshop",)
    """Data sources; each gets its own cut and study."""
    encoder: str = "toyshop-clip"
    """As in `perpeft study`."""
    seeds: tuple[int, ...] = (0,)
    """Training seeds."""
    quantile: float = 0.7
    """Share of interactions before the cut."""
    events: int = 5
    """Maximum events per user."""
    methods: tuple[Method, ...] = METHODS
    """Methods; perpeft is compared with each of the others."""
    variant: Variant = "lora"
    """PEFT variant."""
    rank: int = 4
    """Its rank."""
    groups: int = 6
    """Groups of PerPEFT."""
    conditioning_weight: float = 0.75
    """λ of PerPEFT."""
    learning_rates: tuple[float, ...] = StudyConfig().search.learning_rates
    """Tried by every method."""
    train: TrainSettings = field(default_factory=TrainSettings)
    storage: str = "results"
    """Folder of studies; results go to <storage>/cold_start/."""


def main() -> None:
    """Train before the cut, rank the events after it, compare."""
    cold = parse(ColdStart, description=__doc__)
    ranks = pd.concat(
        [ranks_of(cold, dataset, seed) for dataset in cold.datasets for seed in cold.seeds],
        ignore_index=True,
    )
    from perpeft_ray.store.files import whole_file

    with whole_file(Path(cold.storage) / "cold_start" / "ranks.parquet") as temporary:
        ranks.to_parquet(temporary, index=False)
    print_comparison(ranks, cold.variant)


def ranks_of(cold: ColdStart, dataset: str, seed: int) -> pd.DataFrame:
    """Ranks of all events under every method; columns dataset, seed, method, slice, user_id, rank.

    The study before the cut is <storage>/cold_start_…; a rerun reads it.
    """
    from perpeft_ray.data.folders import new_folder
    from perpeft_ray.data.sources import open_dataset
    from perpeft_ray.models.export import export_trial
    from perpeft_ray.models.loaded import LoadedModel
    from perpeft_ray.models.trained import choose_trial
    from perpeft_ray.store.folder import StudyFolder, storage_folder, study_place

    cache = storage_folder(cold.storage) / ".cache"
    whole = open_dataset(dataset, cache)
    held_out = hold_out(whole, cold.quantile, cold.events)
    key = hashlib.sha256(f"{whole.fingerprint} {held_out.cut}".encode()).hexdigest()[:8]
    training = cache / f"cold_start-{key}"
    if not training.is_dir():
        with new_folder(training) as temporary:
            write_training_folder(held_out, whole.root, temporary)
    before, events = held_out.training, held_out.events
    print(
        f"{dataset}: {len(before):,} interactions of {before.user_id.nunique():,} users with "
        f"{len(held_out.known_items):,} items before the cut; {len(events):,} events after it, "
        f"{events.new_user.sum()} of new users, {events.new_item.sum()} with new items"
    )
    config = _study(cold, f"parquet:{training}", f"cold_start_{key}_{seed}", seed)
    run_and_show(config)
    folder = StudyFolder.open(study_place(cold.storage, config.study))
    frames = []
    for method in cold.methods:
        with tempfile.TemporaryDirectory() as exported:
            export_trial(folder, choose_trial(folder, "best", method), Path(exported) / "model")
            model = LoadedModel(Path(exported) / "model")
            frames.append(rank_events(model, held_out, whole.root).assign(method=method))
    return pd.concat(frames, ignore_index=True).assign(dataset=dataset, seed=seed)


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
    from perpeft_ray.data.folders import link_or_copy

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
    from perpeft_ray.models.new_items import NewItem

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


def print_comparison(ranks: pd.DataFrame, variant: str, metric: str = "ndcg@20") -> None:
    """Print each slice's means, and PerPEFT against the others with intervals over users."""
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 200)
    table = Table("slice", "method", "users", "events", metric.upper(), "PerPEFT minus it", "p")
    for row in comparison(ranks, variant, metric).itertuples():
        difference = "" if pd.isna(row.difference) else f"{100 * row.difference:+.2f}"
        if not pd.isna(row.low):
            difference += f" [{100 * row.low:.2f}, {100 * row.high:.2f}]"
        table.add_row(
            row.slice,
            row.method,
            str(row.users),
            str(row.events),
            f"{100 * row.mean:.2f}",
            difference,
            "" if pd.isna(row.p_value) else f"{row.p_value:.2g}",
        )
    console.print(table)
    console.print("× 100; 95 % bootstrap intervals over users; p: paired t over users, uncorrected")


def comparison(ranks: pd.DataFrame, variant: str, metric: str) -> pd.DataFrame:
    """One row per slice and method.

    Columns: slice, method, users, events, mean, and PerPEFT minus the method: difference, low and
    high (of the interval; null with one user), p_value (null for PerPEFT itself).
    """
    from perpeft_ray.report.statistics import compare_users, user_metric

    ranks = ranks.assign(value=user_metric(ranks["rank"].to_numpy(), metric))
    keys = ["dataset", "seed", "user_id"]
    rows = []
    for name in (name for name in SLICES if name in set(ranks.slice)):
        of_slice = ranks[ranks.slice == name]
        by_user = of_slice.groupby([*keys, "method"]).value.mean().unstack()
        events = len(of_slice[of_slice.method == "perpeft"])
        for method in ranks.method.unique():
            row = {"slice": name, "method": method, "events": events}
            row["users"] = len(by_user.groupby(["dataset", "user_id"]))
            row["mean"] = by_user.groupby(["dataset", "user_id"])[method].mean().mean()
            if method != "perpeft":
                pairs = by_user[["perpeft", method]].set_axis(["a", "b"], axis=1).reset_index()
                found = compare_users(pairs, ("perpeft", method, variant), metric)
                row |= {"difference": found.difference, "p_value": found.p_value}
                row["low"], row["high"] = found.interval
            rows.append(row)
    return pd.DataFrame(rows)


def _study(cold: ColdStart, dataset: str, name: str, seed: int) -> StudyConfig:
    return StudyConfig(
        dataset=dataset,
        encoder=cold.encoder,
        storage=cold.storage,
        study=name,
        seeds=(seed,),
        methods=cold.methods,
        peft=PeftSettings(variant=cold.variant, rank=cold.rank),
        grouping=GroupingSettings(groups=cold.groups),
        loss=LossSettings(conditioning_weight=cold.conditioning_weight),
        train=cold.train,
        search=replace(
            SearchSettings(),
            learning_rates=cold.learning_rates,
            trials=len(cold.learning_rates),
            asha=False,
        ),
    )


if __name__ == "__main__":
    run(main)
