"""`perpeft explain item|user`: shows what a trial's modules do, in the terminal and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from perpeft_ray.errors import InputError
from perpeft_ray.screen import console as console_on

if TYPE_CHECKING:
    from perpeft_ray.data.interactions import Dataset
    from perpeft_ray.explain.item import ItemExplanation
    from perpeft_ray.explain.user import UserExplanation
    from perpeft_ray.models.trained import TrainedTrial
    from perpeft_ray.store.folder import StudyFolder


@dataclass(frozen=True)
class _Common:
    study: tyro.conf.Positional[str]
    """Folder of the study, or its URI: <storage>/<study>."""
    id: tyro.conf.Positional[str]
    """The item's or user's id, as in the data."""
    trial: str = "best"
    """A trial's id, or best: PerPEFT's highest validation NDCG@20 in the ablation."""
    out: Path | None = None
    """The page; by default <study>/explain/<item or user>-<id>.html (an id that is not a
    plain file name is shortened, with a hash)."""


@dataclass(frozen=True)
class Item(_Common):
    """`perpeft explain item STUDY ITEM_ID`."""

    groups: tuple[int, int] | None = None
    """The two groups; by default those with users that see the item most differently."""
    neighbours: int = 5
    """Nearest items to show; 0 skips encoding the catalogue."""

    def run(self) -> None:
        """Print what there is to see, and write the page."""
        _item(self)


@dataclass(frozen=True)
class User(_Common):
    """`perpeft explain user STUDY USER_ID`."""

    other: int | None = None
    """The other group; by default the group with users that is farthest from the user's."""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """Items recommended by each."""

    def run(self) -> None:
        """Print what there is to see, and write the page."""
        _user(self)


def _item(command: Item) -> None:
    from perpeft_ray.explain.item import explain_item
    from perpeft_ray.explain.pages import page_name, write_item_page

    folder, trial = _open(command)
    item = _place(command.id, list(trial.split.item_ids), "item", command.study) + 1
    explanation = explain_item(trial, item, command.groups, command.neighbours)
    print_item(explanation, trial.dataset)
    page = command.out or folder.path / "explain" / page_name("item", command.id)
    write_item_page(explanation, trial, page)
    print(f"page: {_kept(folder, page)}")


def _user(command: User) -> None:
    from perpeft_ray.explain.pages import page_name, write_user_page
    from perpeft_ray.explain.user import explain_user

    folder, trial = _open(command)
    user = _place(command.id, list(trial.split.user_ids), "user", command.study)
    explanation = explain_user(folder, trial, user, command.other, command.k)
    _print_user(explanation, trial.dataset)
    page = command.out or folder.path / "explain" / page_name("user", command.id)
    write_user_page(explanation, trial, page)
    print(f"page: {_kept(folder, page)}")


def _open(command: _Common) -> tuple[StudyFolder, TrainedTrial]:
    from perpeft_ray.models.trained import choose_trial, open_trained
    from perpeft_ray.store.folder import StudyFolder

    folder = StudyFolder.open(command.study)
    return folder, open_trained(folder, choose_trial(folder, command.trial))


def _place(name: str, names: Sequence[str], kind: str, study: str) -> int:
    if name not in names:
        raise InputError(f"no {kind} {name!r} in the data of {study}; for example {names[0]!r}")
    return names.index(name)


def _kept(folder: StudyFolder, page: Path) -> str:
    """Upload a page inside the study's folder if the study is at a URI; returns its place."""
    if not page.is_relative_to(folder.path):
        return str(page)
    folder.keep()
    return folder.shown_path(page)


def print_item(explanation: ItemExplanation, dataset: Dataset) -> None:
    """Print an item as its groups see it."""
    from rich.table import Table

    from perpeft_ray.explain.pages import item_title

    console = _console()
    views = explanation.views
    columns = [f"group {view.group}" for view in views]
    compared = f"seen by {columns[0]} only: no other group has users"
    if explanation.cosine is not None:
        between = " and ".join(columns)
        compared = f"cosine {explanation.cosine:.2f} between its embeddings under {between}"
    console.print(f"{item_title(dataset, explanation.item)}: {compared}", markup=False)
    shares = [view.words for view in views if view.words is not None]
    if shares:
        table = Table("attention, %", *columns, box=None, pad_edge=False)
        for word, *of_word in zip(explanation.words, *shares, strict=True):
            table.add_row(_plain(word), *(f"{100 * share:.0f}" for share in of_word))
        console.print(table)
    if not explanation.has_attention:
        console.print("this variant leaves attention unchanged: it is the same for all groups")
    if views[0].neighbours:
        table = Table(*(f"nearest for {name}" for name in columns), box=None, pad_edge=False)
        for row in zip(*(view.neighbours for view in views), strict=True):
            table.add_row(*(_plain(f"{c:.2f} {item_title(dataset, item)}") for item, c in row))
        console.print(table)


def _print_user(explanation: UserExplanation, dataset: Dataset) -> None:
    from rich.table import Table

    from perpeft_ray.explain.pages import item_title

    console = _console()
    titles = [item_title(dataset, item) for item in explanation.history]
    console.print(f"group {explanation.group}; has: {'; '.join(titles)}", markup=False)
    if explanation.test_item is not None:
        console.print(f"then: {item_title(dataset, explanation.test_item)}", markup=False)
    table = Table("", *(one.title for one in explanation.lists), box=None, pad_edge=False)
    rows = max(len(one.items) for one in explanation.lists)
    for place in range(rows):
        names = [
            item_title(dataset, one.items[place][0]) if place < len(one.items) else ""
            for one in explanation.lists
        ]
        table.add_row(str(place + 1), *map(_plain, names))
    if explanation.test_item is not None:
        ranks = [one.test_rank for one in explanation.lists]
        table.add_row("then", *("–" if rank is None else f"number {rank + 1}" for rank in ranks))
    console.print(table)


def _plain(text: str) -> str:
    """Titles are not markup."""
    from rich.markup import escape

    return escape(text)


def _console() -> Console:
    return console_on(highlight=False)
