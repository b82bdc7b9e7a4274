"""One epoch of training: which groups' batches make a step, and what a step does.

Rule of a step. A step holds one batch of one group (sequential) or the next batch of every group
that still has one (parallel). The losses of its batches are summed over positions and divided by
the number of positions of the whole step, so that SASRec sees one update a step. Workers own whole
groups and sum SASRec's gradients; those without a batch add zeros. All randomness is drawn from
(seed, stage, epoch, group, batch), never from the worker, so the result does not depend on how
many workers there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from perpeft_ray.config import Mode, TrialConfig
from perpeft_ray.recommender.sampling import TrainingSampler, batches_of
from perpeft_ray.train.collective import Collective
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
    """What an epoch of a stage draws from."""

    stage: int
    sampler: TrainingSampler
    users: Mapping[int, NDArray[np.int64]]
    """Trainable users of every group, of this worker or not."""
    pools: Mapping[int, NDArray[np.int64] | None]
    """Items that a group's negatives come from; None: all items."""
    conditioning_weight: float


def steps_of(
    users: Mapping[int, NDArray[np.int64]],
    batch_size: int,
    mode: Mode,
    rng: np.random.Generator,
) -> list[list[Batch]]:
    """The steps of an epoch, each a list of batches. Group g has ceil(U_g / batch_size) batches.

    Sequential: one batch a step, groups in shuffled order. Parallel: step k holds the k-th batch
    of every group that has one, so there are as many steps as the largest group has batches.
    """
    batches = {
        group: [Batch(group, k, b) for k, b in enumerate(batches_of(members, batch_size, rng))]
        for group, members in users.items()
    }
    if mode == "sequential":
        order = rng.permutation([g for g, own in batches.items() for _ in own])
        queues = {group: iter(own) for group, own in batches.items()}
        return [[next(queues[group])] for group in order]
    longest = max(map(len, batches.values()), default=0)
    return [[own[k] for own in batches.values() if k < len(own)] for k in range(longest)]


def train_epoch(
    state: TrainState,
    data: StageData,
    epoch: int,
    config: TrialConfig,
    collective: Collective,
) -> float:
    """Train for one epoch, in place; returns the mean loss a position over all workers.

    Raises FloatingPointError where the loss is not finite.
    """
    model = state.model
    model.train()
    rng = np.random.default_rng([config.seed, data.stage, epoch])
    shared = list(model.backbone.parameters())
    table = model.backbone.item_embedding.weight
    loss_total = position_total = 0.0
    for step in steps_of(data.users, config.batch_size, config.mode, rng):
        own = [batch for batch in step if batch.group in state.modules]
        totals = torch.zeros(2, device=table.device)  # loss, positions
        for batch in own:
            totals += _accumulate(state, data, batch, epoch, config)
        for parameter in shared:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        grads = [parameter.grad for parameter in shared if parameter.grad is not None]
        collective.sum_([*grads, totals])
        loss, positions = totals.tolist()
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"the training loss must be finite, but is {loss} in stage {data.stage}, "
                f"epoch {epoch}"
            )
        loss_total += loss
        position_total += positions
        if positions == 0:
            continue
        torch._foreach_div_(grads, positions)
        assert table.grad is not None
        norm = table.detach().norm()
        table.grad.add_(table.detach() * (ID_NORM_WEIGHT / norm.clamp_min(1e-12)))
        state.backbone_optimizer.step()
        state.backbone_optimizer.zero_grad(set_to_none=False)
        for batch in own:
            if batch.group in state.module_optimizers:
                module = state.modules[batch.group].values()
                torch._foreach_div_([p.grad for p in module if p.grad is not None], positions)
                state.module_optimizers[batch.group].step()
                state.module_optimizers[batch.group].zero_grad()
    return loss_total / max(position_total, 1.0)


def _accumulate(
    state: TrainState, data: StageData, batch: Batch, epoch: int, config: TrialConfig
) -> torch.Tensor:
    """Add the gradients of a batch, as sums over positions. Returns (loss sum, positions)."""
    rng = np.random.default_rng([config.seed, data.stage, epoch, batch.group, batch.number])
    torch.manual_seed(int(rng.integers(2**62)))  # of dropout, the same on whichever worker
    pool, weight = data.pools[batch.group], data.conditioning_weight
    sample = data.sampler.sample(batch.users, rng, pool=pool, weight=weight)
    loss, positions = state.model.loss_sum(sample, state.modules[batch.group], weight)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return torch.stack([loss.detach(), torch.tensor(float(positions), device=loss.device)])


def batches_per_group(users: Mapping[int, NDArray[np.int64]], batch_size: int) -> NDArray[np.int64]:
    """ceil(U_g / batch_size) for groups 0..G-1, int64 [G]."""
    sizes: Sequence[int] = [len(users[group]) for group in sorted(users)]
    return -(-np.asarray(sizes, dtype=np.int64) // batch_size)
