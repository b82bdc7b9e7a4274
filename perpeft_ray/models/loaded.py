"""An exported model in use: `perpeft_ray.load(DIR)`.

Letters: n histories, I items (0 is padding), G groups, T sequence length, D hidden units.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from perpeft_ray.config.rules import at_least
from perpeft_ray.data.split import Histories
from perpeft_ray.errors import InputError
from perpeft_ray.models.layout import (
    CENTROIDS,
    EMBEDDINGS,
    GROUPING,
    SASREC,
    ExportConfig,
    group_folder,
    located_encoder,
    read_config,
    read_items,
)
from perpeft_ray.models.new_items import NewImage, NewItem, check_new_items, embed_new_items
from perpeft_ray.recommender.ranking import target_ranks
from perpeft_ray.recommender.sampling import last_inputs
from perpeft_ray.recommender.sasrec import SASRec
from perpeft_ray.train.grouping import nearest_centroids

_BLOCK_HISTORIES = 1024
"""Histories per SASRec batch, as in a study."""
_BLOCK_SCORES = 16 * 2**20
"""Scores per block: 64 MiB of float32."""


@dataclass(frozen=True)
class Recommendation:
    """A recommended item."""

    item_id: str
    title: str | None
    score: float
    """Comparable only among items for one user and group."""


@dataclass(frozen=True, eq=False)
class TopItems:
    """The best items of n histories, best first."""

    groups: NDArray[np.int32]
    """[n]: each history's group."""
    items: NDArray[np.int64]
    """[n, k] item indices 1..I; 0 beyond the last candidate."""
    scores: NDArray[np.float32]
    """[n, k]; -inf where `items` is 0."""


class LoadedModel:
    """Recommends from histories alone; stores no user.

    Not thread-safe while items are added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: ExportConfig = read_config(folder)
        try:
            self.item_ids, self.titles = read_items(folder, self.config.items)
            self._parts = [group_folder(folder, group) for group in range(self.config.groups)]
            self._backbone = self._sasrec(folder)
            if self.config.trial.groups is not None:  # the stage-1 model assigns the groups
                self._parts.append(folder / GROUPING)
                self._first_backbone = self._sasrec(folder / GROUPING)
                centroids = folder / GROUPING / CENTROIDS
                self._centroids = self._table(centroids, self.config.groups).numpy()
            # [I+1, D] for each part.
            self._embeddings = [
                self._table(part / EMBEDDINGS, self.config.items + 1) for part in self._parts
            ]
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            first = str(error).strip().splitlines()[0]
            raise InputError(f"{folder} must be a whole exported model, but: {first}") from error
        self._index = {item_id: at for at, item_id in enumerate(self.item_ids, start=1)}

    def recommend(
        self, history: Sequence[str], k: int = 10, *, exclude_seen: bool = True
    ) -> list[Recommendation]:
        """The k best next items (or all that remain) for a user with this history.

        `history`: item ids, oldest first, at least one. `exclude_seen` excludes the history's
        items. The user gets the group with the nearest centroid. Raises InputError for an empty
        history, an unknown item and a k below 1.
        """
        best = self.top_items([self.indices(history)], k, exclude_seen=exclude_seen)
        found = best.items[0] > 0
        return [
            Recommendation(self.item_ids[item - 1], self.titles[item - 1], float(score))
            for item, score in zip(best.items[0][found], best.scores[0][found], strict=True)
        ]

    def group_of(self, history: Sequence[str]) -> int:
        """The group that a user with this history is assigned to; 0 for one module for all."""
        return int(self.assign([self.indices(history)])[0])

    def embed_item(self, title: str | None, image: NewImage | None) -> Tensor:
        """A new item's embedding for each group, float32 [G, D], from title and image alone.

        One of the two may be None. Errors as in `add_items`.
        """
        items = [NewItem("new", title, image)]
        check_new_items(self.config.trial, items)
        return self._embed_new(items)[: self.config.groups, 0]

    def add_items(self, items: Sequence[NewItem], *, without_content: bool = False) -> None:
        """Add new items, which can then be recommended and occur in histories.

        Embeds them together, loading the encoder once; does not change the folder. Raises
        InputError for a known id, a value of a wrong type, a missing image file, an item that the
        model cannot read (title and image missing, blank or broken) unless `without_content`, and a
        missing encoder.
        """
        check_new_items(self.config.trial, items, without_content=without_content)
        times = Counter(item.item_id for item in items)
        known = next((i for i, count in times.items() if i in self._index or count > 1), None)
        if known is not None:
            raise InputError(f"a new item must have a new id, but {known!r} is known")
        if not items:
            return
        new = self._embed_new(items)
        self._embeddings = [
            torch.cat([old, rows]) for old, rows in zip(self._embeddings, new, strict=True)
        ]
        for item in items:
            self.item_ids.append(item.item_id)
            self.titles.append(item.title)
            self._index[item.item_id] = len(self.item_ids)

    def indices(self, history: Sequence[str]) -> NDArray[np.int64]:
        """Item indices 1..I of a history. Raises InputError for an unknown item."""
        if isinstance(history, str):
            raise InputError(f"`history` must be a list of item ids, but is the text {history!r}")
        unknown = next((item for item in history if item not in self), None)
        if unknown is not None:
            raise InputError(
                f"no item {unknown!r} in {self.folder}; for example {self.item_ids[0]!r}"
            )
        return np.array([self._index[item] for item in history], dtype=np.int64)

    def __contains__(self, item_id: str) -> bool:
        """Whether an item is known, from the catalogue or added."""
        return item_id in self._index

    def assign(self, histories: Sequence[NDArray[np.int64]]) -> NDArray[np.int32]:
        """The group of each history, int32 [n], by the nearest centroid."""
        if self.config.trial.groups is None:
            return np.zeros(len(histories), dtype=np.int32)
        states = _states(self._first_backbone, self._latest(histories), self._embeddings[-1])
        return nearest_centroids(states.numpy(), self._centroids)

    def scores(
        self, histories: Sequence[NDArray[np.int64]], groups: NDArray[np.int32] | None = None
    ) -> Tensor:
        """Scores of all items for each history, float32 [n, I]; column i - 1 is item i.

        `groups` [n]: None assigns by history. Includes seen items. Raises InputError for an empty
        history.
        """
        out = torch.empty(len(histories), len(self.item_ids))
        for rows, states, embeddings in self._by_group(histories, groups):
            out[rows] = states @ embeddings[1:].T
        return out

    def ranks(
        self,
        histories: Sequence[NDArray[np.int64]],
        targets: NDArray[np.int64],
        candidates: NDArray[np.int64] | None = None,
    ) -> NDArray[np.int64]:
        """The 0-based rank of each history's target, int64 [n], ranked as in a study.

        `targets` [n] item indices. `candidates`: item indices, ascending, including the targets;
        None: all items. The history's items are excluded. Groups are assigned by history.
        """
        if candidates is None:
            candidates = np.arange(1, len(self.item_ids) + 1)
        place = np.zeros(len(self.item_ids) + 1, dtype=np.int64)  # among candidates; 0: not one
        place[candidates] = np.arange(1, len(candidates) + 1)
        out = np.empty(len(histories), dtype=np.int64)
        for rows, states, embeddings in self._by_group(histories, None):
            known = [place[histories[int(row)]] for row in rows]
            known = [places[places > 0] for places in known]
            table = embeddings[np.concatenate([[0], candidates])]
            out[rows] = target_ranks(states, table, place[targets[rows]], _joined(known))
        return out

    def top_items(
        self, histories: Sequence[NDArray[np.int64]], k: int, *, exclude_seen: bool = True
    ) -> TopItems:
        """The k best items for each history (item indices, oldest first). Errors as `recommend`."""
        if isinstance(k, Integral) and not isinstance(k, bool):
            k = int(k)  # of NumPy
        at_least("k", k, 1)
        groups = self.assign(histories)
        kept = min(k, len(self.item_ids))
        items = np.zeros((len(histories), kept), dtype=np.int64)
        scores = np.empty((len(histories), kept), dtype=np.float32)
        step = max(1, _BLOCK_SCORES // len(self.item_ids))
        for at in range(0, len(histories), step):
            block = slice(at, at + step)
            of_block = self.scores(histories[block], groups[block])
            if exclude_seen:
                for row, history in zip(of_block, histories[block], strict=True):
                    row[history - 1] = -torch.inf
            best, columns = of_block.topk(kept, dim=1)
            scores[block] = best.numpy()
            items[block] = np.where(np.isneginf(best.numpy()), 0, columns.numpy() + 1)
        return TopItems(groups, items, scores)

    def _by_group(
        self, histories: Sequence[NDArray[np.int64]], groups: NDArray[np.int32] | None
    ) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
        """Rows of each group's histories, their states [n, D], the group's embeddings [I+1, D]."""
        inputs = self._latest(histories)
        if groups is None:
            groups = self.assign(histories)
        for group in np.unique(groups):
            rows = np.flatnonzero(groups == group)
            embeddings = self._embeddings[group]
            yield rows, _states(self._backbone, inputs[rows], embeddings), embeddings

    def _latest(self, histories: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        """The last T items of each history, padded with 0 on the left: [n, T]."""
        if any(len(history) == 0 for history in histories):
            raise InputError("`history` must have at least one item, but is empty")
        everyone = np.arange(len(histories))
        return last_inputs(_joined(histories), everyone, self.config.trial.sequence_length)

    def _embed_new(self, items: Sequence[NewItem]) -> Tensor:
        """[P, n, D]: under each group's module, and with groups under the stage-1 module."""
        return embed_new_items(self.config.trial, self._encoder(), items, self._parts)

    def _encoder(self) -> str:
        """The encoder's name on this machine; raises InputError if it is a different encoder."""
        from perpeft_ray.encoder.source import encoder_fingerprint

        name = located_encoder(self.config.encoder, self.folder)
        if self.config.trial.method != "without_mm":
            fingerprint = encoder_fingerprint(name)
            if fingerprint != self.config.encoder_fingerprint:
                raise InputError(
                    f"`encoder` {name} must be the one that the model was trained with, "
                    f"{self.config.encoder_fingerprint}, but is {fingerprint}"
                )
        return name

    def _table(self, file: Path, rows: int) -> Tensor:
        """The only tensor of a file, float32 [rows, D]."""
        table = load_file(file)[file.stem].float()
        expected = (rows, self.config.trial.hidden_units)
        if table.shape != expected:
            raise ValueError(f"{file} must have the shape {expected}")
        return table

    def _sasrec(self, folder: Path) -> SASRec:
        trial = self.config.trial
        backbone = SASRec(
            self.config.items,
            trial.hidden_units,
            trial.sequence_length,
            trial.blocks,
            trial.heads,
            trial.dropout,
        )
        backbone.load_state_dict(load_file(folder / SASREC))
        return backbone.eval()


@torch.inference_mode()
def _states(backbone: SASRec, inputs: NDArray[np.int64], embeddings: Tensor) -> Tensor:
    """SASRec's last outputs of inputs [n, T] over embeddings [I+1, D]: float32 [n, D]."""
    out = []
    for at in range(0, len(inputs), _BLOCK_HISTORIES):
        block = torch.from_numpy(inputs[at : at + _BLOCK_HISTORIES])
        out.append(backbone(F.embedding(block, embeddings), block == 0)[:, -1])
    return torch.cat(out) if out else torch.empty(0, embeddings.shape[1])


def _joined(histories: Sequence[NDArray[np.int64]]) -> Histories:
    offsets = np.cumsum([0, *map(len, histories)], dtype=np.int64)
    items = np.concatenate([np.empty(0, dtype=np.int64), *histories]).astype(np.int32)
    return Histories(offsets, items)


def load(folder: str | PathLike[str]) -> LoadedModel:
    """The model that `perpeft export` wrote, on the CPU. Raises InputError for anything else."""
    return LoadedModel(Path(folder))
