"""What workers of one trial tell each other: sums and copies, over torch.distributed or alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


_LOST = (
    "gloo/transport",
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "socket closed",
    "remote process exited",
    "read error",
    "write error",
    "timed out waiting",
)
"""What gloo and NCCL say, in lower case, where a peer's process or its connection is gone."""


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

    def sum_(self, tensor: Tensor) -> None:
        """Add a tensor over all workers, in place; dtype and shape are equal on every worker."""

    def share(self, make: Callable[[], T]) -> T:
        """What worker 0 makes, on every worker; the others do not call `make`."""


class Alone:
    """A single worker: nothing to do."""

    rank = 0
    world_size = 1

    def sum_(self, tensor: Tensor) -> None:
        """Leave the tensor as it is."""

    def share(self, make: Callable[[], T]) -> T:
        """What is made."""
        return make()


class TorchCollective:
    """The default process group of torch.distributed, which the caller has set up.

    It takes tensors of the CPU and of the device that is trained on ("cpu:gloo,cuda:nccl").
    """

    @property
    def rank(self) -> int:
        """This worker, 0-based."""
        return dist.get_rank()

    @property
    def world_size(self) -> int:
        """Workers in all."""
        return dist.get_world_size()

    def sum_(self, tensor: Tensor) -> None:
        """Add a tensor over all workers, in place; dtype and shape are equal on every worker."""
        with _naming_lost_peers():
            dist.all_reduce(tensor)

    def share(self, make: Callable[[], T]) -> T:
        """What worker 0 makes, on every worker; it travels pickled, between these workers alone."""
        values = [make() if self.rank == 0 else None]
        with _naming_lost_peers():
            dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return cast("T", values[0])


@contextmanager
def _naming_lost_peers() -> Iterator[None]:
    """Raise PeerLostError where a peer is gone.

    gloo raises a bare RuntimeError then, as it does for much else: its message tells them apart.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        lost = isinstance(error, dist.DistNetworkError) or any(sign in text for sign in _LOST)
        if not lost:
            raise
        raise PeerLostError("another worker of the trial was lost") from error
