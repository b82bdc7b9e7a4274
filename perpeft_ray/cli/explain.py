"""`perpeft explain item|user`: shows what a trial's modules do, in the terminal and as a page."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from perpeft_ray.errors import InputError
from perpeft_ray.screen import console

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
    """Id of the item or user, as in the data."""
    trial: str = "best"
    """A trial's id, or best: PerPEFT's highest validation NDCG@20 in the ablation."""
    out: Path | None = None
    """The page; by default <study>/explain/<item or user>-<id>.html, with an unusual id hashed."""

    def open(self, kind: str) -> tuple[StudyFolder, TrainedTrial, int]:
        """The study, the trial, and the place of the id among its items or users, from 0."""
        from perpeft_ray.models.trained import choose_trial, open_trained
        from perpeft_ray.store.folder import StudyFolder

        folder = StudyFolder.open(self.study)
        trial = open_trained(folder, choose_trial(folder, self.trial))
        names = list(trial.split.item_ids if kind == "item" else trial.split.user_ids)
        if self.id not in names:
            raise InputError(
                f"no {kind} {self.id!r} in the data of {self.study}; for example {names[0]!r}"
            )
        return folder, trial, names.index(self.id)

    def write(self, kind: str, folder: StudyFolder, write: Callable[[Path], None]) -> None:
        """Write the page and print its place; upload it if it is in the folder of a URI."""
        from perpeft_ray.explain.pages import page_name

        page = self.out or folder.path / "explain" / page_name(kind, self.id)
        write(page)
        if page.is_relative_to(folder.path):
            folder.keep("explain")
            print(f"page: {folder.shown_path(page)}")
        else:
            print(f"page: {page}")


@dataclass(frozen=True)
class Item(_Common):
    """`perpeft explain item STUDY ITEM_ID`."""

    groups: tuple[int, int] | None = None
    """The two groups; by default those with users that see the item most differently."""
    neighbours: int = 5
    """Nearest items to show; 0 skips encoding the catalogue."""

    def run(self) -> None:
        """Print what there is to see, and write the page."""
        from perpeft_ray.explain.item import explain_item
        from perpeft_ray.explain.pages import write_item_page

        folder, trial, place = self.open("item")
        explanation = explain_item(trial, place + 1, self.groups, self.neighbours)
        print_item(explanation, trial.dataset)
        self.write("item", folder, lambda page: write_item_page(explanation, trial, page))


@dataclass(frozen=True)
class User(_Common):
    """`perpeft explain user STUDY USER_ID`."""

    other: int | None = None
    """The other group; by default the group with users that is farthest from the user's."""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """Items recommended by each."""

    def run(self) -> None:
        """Print what there is to see, and write the page."""
        from perpeft_ray.explain.pages import write_user_page
        from perpeft_ray.explain.user import explain_user

        folder, trial, user = self.open("user")
        explanation = explain_user(folder, trial, user, self.other, self.k)
        _print_user(explanation, trial.dataset)
        self.write("user", folder, lambda page: write_user_page(explanation, trial, page))


def print_item(explanation: ItemExplanation, dataset: Dataset) -> None:
    """Print an item as its groups see it."""
    from rich.table import Table
    from rich.text import Text

    from perpeft_ray.explain.pages import item_title

    show = console(highlight=False).print
    views = explanation.views
    columns = [f"group {view.group}" for view in views]
    compared = f"seen by {columns[0]} only: no other group has users"
    if explanation.cosine is not None:
        between = " and ".join(columns)
        compared = f"cosine {explanation.cosine:.2f} between its embeddings under {between}"
    show(f"{item_title(dataset, explanation.item)}: {compared}", markup=False)
    shares = [view.words for view in views if view.words is not None]
    if shares:
        table = Table("attention, %", *columns, box=None, pad_edge=False)
        for word, *of_word in zip(explanation.words, *shares, strict=True):
            table.add_row(Text(word), *(f"{100 * share:.0f}" for share in of_word))
        show(table)
    if not explanation.has_attention:
        show("this variant leaves attention unchanged: it is the same for all groups")
    if views[0].neighbours:
        table = Table(*(f"nearest for {name}" for name in columns), box=None, pad_edge=False)
        for row in zip(*(view.neighbours for view in views), strict=True):
            table.add_row(*(Text(f"{c:.2f} {item_title(dataset, item)}") for item, c in row))
        show(table)


def _print_user(explanation: UserExplanation, dataset: Dataset) -> None:
    from rich.table import Table
    from rich.text import Text

    from perpeft_ray.explain.pages import item_title

    show = console(highlight=False).print
    titles = [item_title(dataset, item) for item in explanation.history]
    show(f"group {explanation.group}; has: {'; '.join(titles)}", markup=False)
    if explanation.test_item is not None:
        show(f"then: {item_title(dataset, explanation.test_item)}", markup=False)
    table = Table("", *(one.title for one in explanation.lists), box=None, pad_edge=False)
    recommended = (one.items for one in explanation.lists)
    for place, row in enumerate(itertools.zip_longest(*recommended), start=1):
        names = ("" if cell is None else item_title(dataset, cell[0]) for cell in row)
        table.add_row(str(place), *map(Text, names))
    if explanation.test_item is not None:
        ranks = [one.test_rank for one in explanation.lists]
        table.add_row("then", *("–" if rank is None else f"number {rank + 1}" for rank in ranks))
    show(table)
