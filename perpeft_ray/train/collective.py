"""What workers of one trial tell each other: sums and copies, over torch.distributed or alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class PeerLostError(RuntimeError):
    """Another worker of the trial ended while this one waited for it."""


class Collective(Protocol):
    """Every worker must make the same calls in the same order."""

    @property
    def rank(self) -> int:
        """This worker, 0-based."""

    @property
    def world_size(self) -> int:
        """Workers in all."""

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Add each tensor over all workers, in place; float32, shapes equal on every worker."""

    def broadcast_(self, tensor: Tensor) -> None:
        """Copy worker 0's tensor to all, in place."""

    def agree(self, value: int) -> int:
        """Worker 0's value, on every worker."""

    def wait(self) -> None:
        """Return when every worker has called this."""


class Alone:
    """A single worker: nothing to do."""

    rank = 0
    world_size = 1

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Leave the tensors as they are."""

    def broadcast_(self, tensor: Tensor) -> None:
        """Leave the tensor as it is."""

    def agree(self, value: int) -> int:
        """The value."""
        return value

    def wait(self) -> None:
        """Return at once."""


class TorchCollective:
    """The default process group of torch.distributed, which the caller has set up.

    Tensors are on `device`, as the group's backend needs them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @property
    def rank(self) -> int:
        """This worker, 0-based."""
        return dist.get_rank()

    @property
    def world_size(self) -> int:
        """Workers in all."""
        return dist.get_world_size()

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """One all-reduce over the flattened tensors."""
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _naming_lost_peers():
            dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def broadcast_(self, tensor: Tensor) -> None:
        """Copy worker 0's tensor to all, in place."""
        with _naming_lost_peers():
            dist.broadcast(tensor, src=0)

    def agree(self, value: int) -> int:
        """Worker 0's value, on every worker."""
        tensor = torch.tensor(value, device=self._device)
        self.broadcast_(tensor)
        return int(tensor)

    def wait(self) -> None:
        """Return when every worker has called this."""
        self.sum_([torch.zeros(1, device=self._device)])


@contextmanager
def _naming_lost_peers() -> Iterator[None]:
    """gloo raises a bare RuntimeError where a peer is gone, as it does for much else."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLostError("another worker of the trial was lost") from error
