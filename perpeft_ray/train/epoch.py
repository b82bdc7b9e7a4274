"""One epoch of training: steps of pieces, spread over the workers.

A *piece* is one batch of one group. A step has one piece (sequential) or several (parallel): the
next batch of every group that still has one, or `step_batches` batches of all users if there is one
module. Losses are summed over positions and divided by the step's positions; SASRec and the modules
of the step's groups then get one update. Every worker holds all trained parameters and makes the
same update from the summed gradients.

Workers take whole pieces. Leftover pieces are shared: cut into *units* of some items, each encoded
by one worker. Workers exchange the units' content, one computes the loss, and each backpropagates
its units through the tower, encoding again those that do not fit into memory. A piece draws its
batch from a random stream keyed by (seed, stage, epoch, group, batch), and a unit its dropout from
one keyed by the unit too, so the result does not depend on workers or memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perpeft_ray.config import TrialConfig
from perpeft_ray.encoder.hardware import sizes_of
from perpeft_ray.recommender.model import GroupParameters
from perpeft_ray.recommender.sampling import TrainingBatch, TrainingSampler, batches_of
from perpeft_ray.train.collective import Alone, Collective
from perpeft_ray.train.memory import Units
from perpeft_ray.train.state import TrainState

ID_NORM_WEIGHT = 1e-6
"""Weight of the Frobenius norm of the id embedding in the loss; METHOD.md section 3."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Users [B] of one group, and the batch's number within its group's epoch."""

    group: int
    number: int
    users: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class StageData:
    """The data of a stage's epochs."""

    stage: int
    sampler: TrainingSampler
    users: Mapping[int, NDArray[np.int64]]
    """Trainable users of every group."""
    pools: Mapping[int, NDArray[np.int64] | None]
    """Items that a group's negatives come from; None: all items."""
    conditioning_weight: float
    step_batches: int = 1
    """Batches per group in a step of parallel mode."""


@dataclass(frozen=True, eq=False)
class _Piece:
    """A batch with its negatives, its distinct items in units, and the seed of its dropout."""

    sample: TrainingBatch
    units: list[NDArray[np.int64]]
    """The distinct items without padding, ascending."""
    padded: int
    """1 if padding is among the items, else 0."""
    dropout: int
    module: GroupParameters


def steps_of(
    users: Mapping[int, NDArray[np.int64]],
    batch_size: int,
    step_batches: int | None,
    rng: np.random.Generator,
) -> list[list[Batch]]:
    """The steps of an epoch, each a list of batches. Group g has ceil(U_g / batch_size) batches.

    `step_batches` None is sequential mode: one batch per step, groups in shuffled order. Else a
    step holds the next batches of every group that has some, at most `step_batches` of each, spread
    evenly over the group's steps; there are as many steps as the largest group needs.
    """
    batches = {
        group: [Batch(group, k, b) for k, b in enumerate(batches_of(members, batch_size, rng))]
        for group, members in users.items()
    }
    if step_batches is None:
        order = rng.permutation([g for g, own in batches.items() for _ in own])
        queues = {group: iter(own) for group, own in batches.items()}
        return [[next(queues[group])] for group in order]
    runs = [_even_runs(own, step_batches) for own in batches.values()]
    return [
        [batch for own in runs if k < len(own) for batch in own[k]]
        for k in range(max(map(len, runs), default=0))
    ]


def train_epoch(
    state: TrainState,
    data: StageData,
    epoch: int,
    config: TrialConfig,
    collective: Collective,
    units: Units,
) -> float:
    """Train for one epoch, in place; returns the mean loss per position over all workers.

    Raises FloatingPointError on every worker if the loss is not finite.
    """
    state.model.train()
    rng = np.random.default_rng([config.seed, data.stage, epoch])
    table = state.model.backbone.item_embedding.weight
    totals: list[torch.Tensor] = []  # of steps that were not read yet
    losses = np.zeros(2)  # loss and positions
    at_once = data.step_batches if config.mode == "parallel" else None
    for step in steps_of(data.users, config.batch_size, at_once, rng):
        active = sorted({batch.group for batch in step})
        modules = [parameter for g in active for parameter in state.modules[g].values()]
        sums = _Sums([*state.model.backbone.parameters(), *modules])
        open_piece = partial(_open, state, data, epoch, config.seed, units.items)
        for piece, among in _shares(step, open_piece, collective):
            _accumulate(state, piece, data.conditioning_weight, among, units, sums)
        collective.sum_(sums.flat)
        totals.append(sums.totals.clone())
        if len(totals) == sizes_of(table.device).unread_steps:
            losses += _read(totals, data.stage, epoch)
        sums.to_gradients()
        assert table.grad is not None
        norm = table.detach().norm()
        table.grad.add_(table.detach() * (ID_NORM_WEIGHT / norm.clamp_min(1e-12)))
        own = [state.module_optimizers[g] for g in active if g in state.module_optimizers]
        for optimizer in (state.backbone_optimizer, *own):
            optimizer.step()
            optimizer.zero_grad()
    if totals:
        losses += _read(totals, data.stage, epoch)
    return float(losses[0] / max(losses[1], 1.0))


def _read(totals: list[torch.Tensor], stage: int, epoch: int) -> NDArray[np.float64]:
    """Sum the steps' losses and positions, [2], and clear the list.

    Waits for a GPU, so it is not called in every step.
    """
    found: NDArray[np.float64] = torch.stack(totals).sum(dim=0).cpu().numpy()
    totals.clear()
    if not np.isfinite(found[0]):
        raise FloatingPointError(
            f"the training loss must be finite, but is {found[0]} in stage {stage}, epoch {epoch}"
        )
    return found


class _Sums:
    """Gradients, loss and positions summed over a step, in float64.

    Rounding to float32 then hides the order of summands, which depends on the number of workers.
    AdamW would turn any difference into a step where a gradient is nearly zero.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._parameters = parameters
        self._sizes = sizes = [2, *(parameter.numel() for parameter in parameters)]
        device = parameters[0].device
        self.flat = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
        """The tensors to sum over the workers."""
        self.totals, *self._parts = torch.split(self.flat, sizes)

    def take(self) -> None:
        """Add the parameters' gradients, and clear them."""
        for parameter, part in zip(self._parameters, self._parts, strict=True):
            if parameter.grad is not None:
                part.add_(parameter.grad.view(-1))
                parameter.grad = None

    def to_gradients(self) -> None:
        """Set the gradients to the sums divided by the step's positions.

        A step without positions gets zero gradients.
        """
        divided = self.flat / self.totals[1].clamp_min(1.0)
        parts = torch.split(divided.float(), self._sizes)[1:]
        for parameter, part in zip(self._parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)


def _shares(
    step: Sequence[Batch], open_piece: Callable[[Batch], _Piece], collective: Collective
) -> Iterator[tuple[_Piece, Collective]]:
    """This worker's pieces of a step, each with the workers that share it.

    Every worker gets the same number of whole pieces; the largest ones are left over and shared by
    all, if they have several units. Whole pieces go, largest first, to the worker with the fewest
    users so far.
    """
    world = collective.world_size
    largest_first = sorted(step, key=lambda batch: -len(batch.users))
    whole = largest_first[len(step) % world :]
    for batch in largest_first[: len(step) % world]:
        piece = open_piece(batch)
        if len(piece.units) > 1:
            yield piece, collective
        else:
            whole.append(batch)
    load = np.zeros(world, dtype=np.int64)
    for batch in sorted(whole, key=lambda batch: -len(batch.users)):
        worker = int(load.argmin())
        load[worker] += len(batch.users)
        if worker == collective.rank:
            yield open_piece(batch), Alone()


def _open(
    state: TrainState, data: StageData, epoch: int, seed: int, unit_items: int, batch: Batch
) -> _Piece:
    rng = np.random.default_rng([seed, data.stage, epoch, batch.group, batch.number])
    dropout = int(rng.integers(2**62))
    pool, weight = data.pools[batch.group], data.conditioning_weight
    sample = data.sampler.sample(batch.users, rng, pool=pool, weight=weight)
    items, _ = sample.distinct()
    padded = int(len(items) > 0 and items[0] == 0)
    count = -(-(len(items) - padded) // unit_items) if state.model.tower else 0
    units = np.array_split(items[padded:], count) if count else []
    return _Piece(sample, units, padded, dropout, state.modules[batch.group])


def _accumulate(
    state: TrainState,
    piece: _Piece,
    weight: float,
    among: Collective,
    units: Units,
    sums: _Sums,
) -> None:
    """Add a piece's loss and gradients, or this worker's part of them, to the sums."""
    model, module = state.model, piece.module
    table = model.backbone.item_embedding.weight
    starts = np.cumsum([piece.padded, *map(len, piece.units)])
    content = table.new_zeros(int(starts[-1]), table.shape[1])
    own = range(among.rank, len(piece.units), among.world_size)
    kept = units.kept(len(own))
    encoded: dict[int, Tensor] = {}

    def encode(unit: int) -> Tensor:
        torch.manual_seed(piece.dropout + unit)
        return model.content(piece.units[unit], module)

    for unit in reversed(own):  # the first one last: the loss continues its random stream
        with torch.set_grad_enabled(unit in own[:kept]):
            found = encode(unit)
        content[starts[unit] : starts[unit + 1]] = found.detach()
        if found.requires_grad:
            encoded[unit] = found
    among.sum_(content)
    content.requires_grad_()
    if among.rank == 0:
        if not own:
            torch.manual_seed(piece.dropout)
        known = content if piece.units else None
        loss, positions = model.loss_sum(piece.sample, module, weight, known)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        sums.take()
        sums.totals += torch.stack([loss.detach(), loss.new_tensor(float(positions))])
    slopes = torch.zeros_like(content) if content.grad is None else content.grad
    among.sum_(slopes)
    for unit in own:
        found = encoded.pop(unit) if unit in encoded else encode(unit)
        found.backward(slopes[starts[unit] : starts[unit + 1]])  # type: ignore[no-untyped-call]  # torch leaves it untyped
        sums.take()


def _even_runs(batches: list[Batch], length: int) -> list[list[Batch]]:
    """The batches in as few runs of at most `length` as possible, evenly long."""
    parts = np.array_split(np.arange(len(batches)), -(-len(batches) // length) or 1)
    return [[batches[k] for k in part] for part in parts if len(part)]
