"""Error messages about workers that Ray Train has lost."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from perpeft_ray.train.collective import PeerLostError, _naming_lost_peers
from perpeft_ray.train.ray_train import _how

PEER = PeerLostError("another worker was lost")


def test_a_worker_that_lost_another_is_not_the_cause():
    assert _how({0: PEER, 1: ActorDiedError()}) == ("ActorDiedError", False)
    assert _how({0: PEER}) == ("PeerLostError", False)


def test_a_closed_connection_is_a_lost_peer():
    told = "[/__w/pytorch/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:2"
    with pytest.raises(PeerLostError), _naming_lost_peers():
        raise RuntimeError(told)


@pytest.mark.parametrize(
    "told", ["shape '[2, 3]' is invalid for input of size 4", "CUDA out of memory. Tried to"]
)
def test_other_errors_of_a_collective_stay_what_they_are(told):
    with pytest.raises(RuntimeError) as raised, _naming_lost_peers():
        raise RuntimeError(told)
    assert type(raised.value) is RuntimeError


def test_workers_that_rays_memory_monitor_kills_are_told():
    killed = OutOfMemoryError("Memory was 23.1GB used / 24.0GB limit\nRefer to the documentation")
    lost = WorkerHealthCheckFailedError("failed", failure=killed)
    assert _how({0: PEER, 1: lost}) == ("Memory was 23.1GB used / 24.0GB limit", True)
