"""`perpeft export`, `pack` and `recommend`: take a model or study elsewhere, and use a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from perpeft_ray.config import Method
from perpeft_ray.errors import InputError
from perpeft_ray.screen import counted, note


@dataclass(frozen=True)
class Export:
    """`perpeft export STUDY OUT`."""

    study: tyro.conf.Positional[str]
    """Folder of the study, or its URI: <storage>/<study>."""
    out: tyro.conf.Positional[Path]
    """The new folder."""
    trial: str = "best"
    """A trial's id, or best: the method's highest validation NDCG@20 in the ablation."""
    method: Method = "perpeft"
    """The method whose best trial to take."""
    embeddings: Literal["float32", "float16"] = "float32"
    """Precision of the precomputed item embeddings; float16 rounds scores to three digits."""
    with_encoder: bool = False
    """Copy the foundation model too, so that new items work offline."""

    def run(self) -> None:
        """Write the model."""
        from perpeft_ray.api.study import open_study

        trial_id = open_study(self.study).export(
            self.out,
            trial=self.trial,
            method=self.method,
            embeddings=self.embeddings,
            with_encoder=self.with_encoder,
        )
        note(f"{trial_id} exported to {self.out}")


@dataclass(frozen=True)
class Pack:
    """`perpeft pack STUDY`."""

    study: tyro.conf.Positional[str]
    """Folder of the study, or its URI: <storage>/<study>."""

    def run(self) -> None:
        """Complete the study's folder."""
        from perpeft_ray.models.portable import pack
        from perpeft_ray.store.folder import StudyFolder

        trials, without_weights, has_encoder = pack(StudyFolder.open(self.study))
        parts = ["data", *["encoder"] * has_encoder]
        note(f"{self.study} has {', '.join(parts)} and the weights of {counted(trials, 'trial')}")
        if without_weights:
            note(f"the weights of {counted(without_weights, 'trial')} are gone")


@dataclass(frozen=True)
class Recommend:
    """`perpeft recommend MODEL --history ID …` or `--users FILE --out FOLDER`."""

    model: tyro.conf.Positional[Path]
    """Folder that `perpeft export` wrote."""
    history: Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="")] = ()
    """Item ids of one user, oldest first; unknown ones are skipped."""
    users: Path | None = None
    """Recommend to all users of a Parquet file or folder with user_id, item_id and timestamp."""
    out: Path | None = None
    """The new folder for the Parquet files of `users`."""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """Items per user."""
    exclude_seen: bool = True
    """Exclude items of the history."""
    workers: int = 1
    """Ray Data workers, for `users`."""

    def run(self) -> None:
        """Recommend to one user, or to all of a table."""
        if (self.users is None) != (self.out is None) or bool(self.history) == bool(self.users):
            raise InputError("either `history` must be given, or `users` together with `out`")
        from perpeft_ray.models.layout import read_config

        read_config(self.model)  # before torch is imported, so that a wrong folder is an error soon
        if self.users is not None and self.out is not None:
            _recommend_all(self, self.users, self.out)
        else:
            _recommend_one(self)


def _recommend_one(command: Recommend) -> None:
    from rich.table import Table
    from rich.text import Text

    import perpeft_ray
    from perpeft_ray.screen import console as console_on

    model = perpeft_ray.load(command.model)
    history = [item for item in command.history if item in model]
    skipped = len(command.history) - len(history)
    if not history:
        raise InputError(
            f"no item {command.history[0]!r} in {command.model}, nor any other of `history`; for "
            f"example {model.item_ids[0]!r}"
        )
    best = model.recommend(history, command.k, exclude_seen=command.exclude_seen)
    if skipped:
        note(f"skipped {skipped} of {len(command.history)} items, which are not in {command.model}")
    console = console_on()
    if model.config.trial.groups is not None:
        console.print(f"group {model.group_of(history)} of {model.config.groups}")
    table = Table("", "item", "title", "score", box=None, pad_edge=False)
    for place, item in enumerate(best, start=1):
        table.add_row(str(place), Text(item.item_id), Text(item.title or "–"), f"{item.score:.3f}")
    console.print(table)


def _recommend_all(command: Recommend, users: Path, out: Path) -> None:
    from perpeft_ray.models.batch import recommend_all

    counts = recommend_all(
        command.model,
        users,
        out,
        k=command.k,
        exclude_seen=command.exclude_seen,
        workers=command.workers,
    )
    note(f"{counts.scored:,} of {counts.users:,} users in {out}")
    if counts.skipped:
        note(
            f"skipped {counts.skipped:,} of {counts.interactions:,} interactions, with items that "
            f"are not in {command.model}"
        )
