"""Communication of a trial's workers: sums and copies, by torch.distributed or alone."""

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
"""Messages of gloo and NCCL, in lower case, when a peer's process or connection is gone."""


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
        """The result of `make` on worker 0, on every worker; the others do not call `make`."""


class Alone:
    """A single worker: nothing to do."""

    rank = 0
    world_size = 1

    def sum_(self, tensor: Tensor) -> None:
        """Leave the tensor as it is."""

    def share(self, make: Callable[[], T]) -> T:
        """The result of `make`."""
        return make()


class TorchCollective:
    """The default process group of torch.distributed, which the caller has set up.

    It takes tensors of the CPU and of the training device ("cpu:gloo,cuda:nccl").
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
        """The result of `make` on worker 0; it is pickled, between these workers only."""
        values = [make() if self.rank == 0 else None]
        with _naming_lost_peers():
            dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return cast("T", values[0])


@contextmanager
def _naming_lost_peers() -> Iterator[None]:
    """Raise PeerLostError if a peer is gone.

    gloo raises a bare RuntimeError for this and for much else; the message tells them apart.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        lost = isinstance(error, dist.DistNetworkError) or any(sign in text for sign in _LOST)
        if not lost:
            raise
        raise PeerLostError("another worker of the trial was lost") from error
