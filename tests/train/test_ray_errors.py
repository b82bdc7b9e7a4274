"""What becomes of errors on Ray Train workers: which are tried again, and what is told of them."""

from __future__ import annotations

import errno

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from perpeft_ray.train.collective import PeerLostError, _naming_lost_peers
from perpeft_ray.train.ray_train import _cause, _EndsAtOwnErrors, _OwnError

OWN = [
    FloatingPointError("the training loss must be finite, but is nan"),
    MemoryError("8 TB"),
    OSError(errno.ENOSPC, "No space left on device"),
]


@pytest.mark.parametrize("error", OWN, ids=lambda error: type(error).__name__)
def test_what_a_worker_raises_itself_is_not_tried_again(error: Exception) -> None:
    with pytest.raises(ControllerError) as raised:
        _EndsAtOwnErrors().after_exception(None, {0: PeerLostError(), 1: _OwnError(error)})
    assert _cause(raised.value) is error


def test_lost_workers_are_tried_again_and_told_when_there_are_too_many() -> None:
    lost = {0: PeerLostError("another worker was lost"), 1: ActorDiedError()}
    _EndsAtOwnErrors().after_exception(None, lost)  # raises nothing
    told = _cause(WorkerGroupError("both", lost))
    assert str(told) == (
        "workers were lost 4 times; killed for want of memory, or with their node (ActorDiedError)"
    )
    assert told.__cause__ is lost[1]


def test_a_closed_connection_is_a_lost_peer() -> None:
    told = "[/__w/pytorch/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:2"
    with pytest.raises(PeerLostError), _naming_lost_peers():
        raise RuntimeError(told)


@pytest.mark.parametrize(
    "told", ["shape '[2, 3]' is invalid for input of size 4", "CUDA out of memory. Tried to"]
)
def test_other_errors_of_a_collective_stay_what_they_are(told: str) -> None:
    with pytest.raises(RuntimeError) as raised, _naming_lost_peers():
        raise RuntimeError(told)
    assert type(raised.value) is RuntimeError


def test_workers_that_rays_memory_monitor_kills_are_told() -> None:
    lost = WorkerHealthCheckFailedError("failed", failure=OutOfMemoryError("23 of 24 GB used"))
    _EndsAtOwnErrors().after_exception(None, {0: PeerLostError("lost"), 1: lost})
    told = _cause(WorkerGroupError("both", {0: PeerLostError("lost"), 1: lost}))
    assert str(told).endswith("killed for want of memory, or with their node (OutOfMemoryError)")
