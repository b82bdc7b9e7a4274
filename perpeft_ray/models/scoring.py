"""Computes states and ranks from histories and item embeddings; plain functions.

Letters: n histories, I items (0 is padding), T sequence length, D hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from perpeft_ray.data.split import Histories
from perpeft_ray.errors import InputError
from perpeft_ray.recommender.ranking import target_ranks
from perpeft_ray.recommender.sasrec import SASRec

_BLOCK = 1024
"""Histories per SASRec batch, as in a study."""


def latest_inputs(histories: Sequence[NDArray[np.int64]], length: int) -> NDArray[np.int64]:
    """The last T items of each history, padded with 0 on the left: [n, T].

    Raises InputError for an empty history.
    """
    inputs = np.zeros((len(histories), length), dtype=np.int64)
    for row, history in zip(inputs, histories, strict=True):
        if len(history) == 0:
            raise InputError("`history` must have at least one item, but is empty")
        latest = history[-length:]
        row[length - len(latest) :] = latest
    return inputs


@torch.inference_mode()
def last_states(backbone: SASRec, inputs: NDArray[np.int64], embeddings: Tensor) -> Tensor:
    """SASRec's last outputs of inputs [n, T] over embeddings [I+1, D]: float32 [n, D]."""
    out = []
    for at in range(0, len(inputs), _BLOCK):
        block = torch.from_numpy(inputs[at : at + _BLOCK])
        out.append(backbone(F.embedding(block, embeddings), block == 0)[:, -1])
    return torch.cat(out) if out else torch.empty(0, embeddings.shape[1])


def ranks_among(
    candidates: NDArray[np.int64],
    states: Tensor,
    embeddings: Tensor,
    targets: NDArray[np.int64],
    histories: Sequence[NDArray[np.int64]],
) -> NDArray[np.int64]:
    """0-based ranks, int64 [n], of targets [n] among `candidates` without each one's history.

    `candidates`: item indices, ascending, the targets among them. States [n, D] and embeddings
    [I+1, D] are of one group. It is a study's own ranking, `target_ranks`.
    """
    known = [
        np.searchsorted(candidates, history[np.isin(history, candidates)]) + 1
        for history in histories
    ]
    offsets = np.concatenate([[0], np.cumsum([len(items) for items in known])])
    items = np.concatenate([np.empty(0, dtype=np.int64), *known]).astype(np.int32)
    rows = np.concatenate([[0], candidates])  # padding stays first
    places = np.searchsorted(candidates, targets) + 1
    return target_ranks(states, embeddings[rows], places, Histories(offsets, items))
