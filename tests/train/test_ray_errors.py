"""Error messages about workers that Ray Train has lost."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import ControllerError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from perpeft_ray.errors import StudyStoppedError
from perpeft_ray.train.collective import PeerLostError, _naming_lost_peers
from perpeft_ray.train.ray_train import Workers, _how

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


def test_a_group_killed_for_want_of_memory_stops_the_study_in_one_line():
    workers = Workers(broker=None)
    workers.look()
    killed = OutOfMemoryError("Memory was 23.1GB used / 24.0GB limit\nRefer to the documentation")
    workers.fit(Trainer(ControllerError(killed)))
    with pytest.raises(StudyStoppedError) as stopped:
        workers.look()
    assert str(stopped.value) == (
        "Memory was 23.1GB used / 24.0GB limit; free memory, then rerun the same command to resume"
    )


def test_another_end_of_a_group_is_an_error_of_the_program():
    workers = Workers(broker=None)
    workers.fit(Trainer(ControllerError(ValueError("unforeseen"))))
    with pytest.raises(RuntimeError, match="cannot keep workers running") as raised:
        workers.look()
    assert not isinstance(raised.value, StudyStoppedError)


class Trainer:
    """A TorchTrainer whose run ends with an error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def fit(self) -> None:
        raise self.error
