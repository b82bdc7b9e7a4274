"""Long-lived groups of Ray Train workers that take trials from a broker one after another.

Ray Train places the workers and restarts a group that loses one; the current trial then continues
from its last checkpoint (`train/checkpoint.py`). An error that a worker raises itself (a loss that
is not finite, too little memory, a full disk) would come again, so it ends the trial.

The number of workers is fixed. Ray Train's elastic `num_workers=(least, most)` would give the same
result, but starts with the workers that fit at the moment and restarts all for every change.
"""

from __future__ import annotations

import gc
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.exceptions import OutOfMemoryError
from ray.train import UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from perpeft_ray.data.places import remove_folder
from perpeft_ray.errors import StudyStoppedError
from perpeft_ray.train.broker import Broker, Failure, Task
from perpeft_ray.train.collective import Alone, Collective, PeerLostError, TorchCollective
from perpeft_ray.train.outcome import EpochRecord, TrialOutcome
from perpeft_ray.train.workspace import Workspace

_TIMEOUT_S = 24 * 3600
"""Timeout of collectives, since a worker may wait for another trial's stage 1, and of waiting for
room, which the study limits itself."""
_END_S = 30.0
"""Seconds for workers to end; those in mid-epoch end with the study's Ray job at the latest."""
_STOP_S = 10.0
"""The same if the study is stopped. Not 0: Ray may crash if it shuts down under a running `fit`."""


Runner = Callable[..., TrialOutcome]
"""Trains a trial on each of its workers: `run_trial`, or a stand-in of tests."""


@dataclass(frozen=True)
class Groups:
    """The equal groups of workers of a study."""

    count: int
    """Number of groups: trials at a time."""
    workers: int
    """Workers per group."""
    cpus_per_worker: int
    gpus_per_worker: float
    memory_gb: float
    """As in `run_trial`."""


class Workers:
    """Running groups."""

    def __init__(self, broker: Any) -> None:
        self.broker = broker
        """Handle of the broker's actor; its methods are those of `Broker`."""
        self._failures: list[BaseException] = []

    def look(self) -> None:
        """Raise an error if a group has ended; StudyStoppedError if Ray ran out of memory."""
        if not self._failures:
            return
        failure = self._failures[0]
        # Ray's memory monitor may kill Ray Train's own process too, which restarts nothing then.
        how, memory = _how({0: getattr(failure, "controller_failure", failure)})
        if memory:
            raise StudyStoppedError(
                f"{how}; free memory, then rerun the same command to resume"
            ) from failure
        raise RuntimeError("Ray Train cannot keep workers running") from failure

    def fit(self, trainer: TorchTrainer) -> None:
        """Run a group to its end."""
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001 - raised by `look`, in the study's thread
            self._failures.append(error)


@contextmanager
def worker_groups(
    groups: Groups, run: Runner, workspace: Workspace, files: Path | str
) -> Iterator[Workers]:
    """Groups of Ray Train workers within the block; Ray must run.

    They start in the background. `files` holds Ray Train's own files, a path or URI that all nodes
    must see. It is removed before and afterwards, but not if the study is stopped: its workers may
    still run then, and another process that took the study over may use it.
    """
    # Read by Ray Train's controllers.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(_TIMEOUT_S)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    remove_folder(files)
    # It takes no CPU, since the workers may need all, and stays on this node.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": here}
    workers = Workers(ray.remote(Broker).options(**options).remote())
    threads = []
    for slot in range(groups.count):
        trainer = _trainer(slot, groups, run, workspace, files, workers.broker)
        threads.append(threading.Thread(target=workers.fit, args=(trainer,), daemon=True))
        threads[-1].start()
    stopped = False
    try:
        yield workers
    except (StudyStoppedError, KeyboardInterrupt, SystemExit):  # they end with the Ray job
        stopped = True
        raise
    finally:
        ray.get(workers.broker.close.remote())
        deadline = time.monotonic() + (_STOP_S if stopped else _END_S)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if not any(thread.is_alive() for thread in threads):  # else it must still end them
            ray.kill(workers.broker)
        if not stopped:
            remove_folder(files)


def _trainer(
    slot: int, groups: Groups, run: Runner, workspace: Workspace, files: Path | str, broker: Any
) -> TorchTrainer:
    # NCCL refuses two workers on one GPU, which fractions allow; gloo takes CUDA tensors too.
    backend = "cpu:gloo,cuda:nccl" if groups.gpus_per_worker >= 1 else "gloo"
    return TorchTrainer(
        _work,
        train_loop_config={
            "broker": broker,
            "slot": slot,
            "run": run,
            "workspace": workspace,
            "groups": groups,
        },
        torch_config=TorchConfig(backend=backend, timeout_s=_TIMEOUT_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=groups.workers,
            use_gpu=groups.gpus_per_worker > 0,
            resources_per_worker={"CPU": groups.cpus_per_worker, "GPU": groups.gpus_per_worker},
        ),
        run_config=ray.train.RunConfig(
            name=f"workers-{slot}",
            storage_path=str(files),
            # The broker counts losses, by trial.
            failure_config=ray.train.FailureConfig(max_failures=-1),
            callbacks=[_TellsLosses(slot, broker)],  # type: ignore[list-item]  # Ray names Tune's
        ),
    )


class _TellsLosses(UserCallback):
    """Reports lost workers to the broker, from Ray Train's controller."""

    def __init__(self, slot: int, broker: Any) -> None:
        self._slot = slot
        self._broker = broker

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """Called before the workers restart, also for an error that a worker raised itself."""
        how, memory = _how(worker_exceptions)
        ray.get(self._broker.lost.remote(self._slot, how, for_want_of_memory=memory))


def _how(errors: Mapping[int, BaseException]) -> tuple[str, bool]:
    """How workers were lost, and whether Ray's memory monitor killed one."""
    found = [getattr(error, "health_check_failure", error) for error in errors.values()]
    for error in found:
        if isinstance(error, OutOfMemoryError):
            # The first line has the node and its memory; the rest is general advice.
            return str(error).strip().partition("\n")[0], True
    first = [error for error in found if not isinstance(error, PeerLostError)] or found
    return type(first[0]).__name__, False


class _StoppedError(Exception):
    """The trial was given up."""


class _RenewalError(Exception):
    """Ends the processes of a group, so that Ray Train starts new ones."""


def _work(loop: dict[str, Any]) -> None:
    """The loop of each worker; worker 0 reports for all."""
    broker, slot, groups = loop["broker"], loop["slot"], loop["groups"]
    torch.set_num_threads(groups.cpus_per_worker)
    alone = groups.workers == 1
    collective: Collective = Alone() if alone else TorchCollective()
    serial = 0
    while (taken := ray.get(broker.take.remote(slot, serial))) is not None:
        serial, task = taken

        def report(record: EpochRecord, serial: int = serial) -> None:
            asked = lambda: ray.get(broker.report.remote(slot, serial, record))  # noqa: E731
            if collective.share(asked):
                raise _StoppedError

        result = _result(loop, task, report, collective)
        if collective.rank == 0 or isinstance(result, Failure):
            ray.get(broker.end.remote(slot, serial, result))
        if isinstance(result, Failure):
            gc.collect()
            # Every worker raises a loss that is not finite; other errors perhaps only one,
            # for which the others would wait.
            if not alone and not isinstance(result.error, FloatingPointError):
                raise result.error
        if task.fresh_process:
            raise _RenewalError


def _result(
    loop: dict[str, Any],
    task: Task,
    report: Callable[[EpochRecord], None],
    collective: Collective,
) -> TrialOutcome | Failure | None:
    run: Runner = loop["run"]
    try:
        return run(
            task.config,
            loop["workspace"],
            report,
            test=task.test,
            checkpoints=task.checkpoints,
            collective=collective,
            device=ray.train.torch.get_device(),
            memory_gb=loop["groups"].memory_gb,
        )
    except _StoppedError:
        return None
    except PeerLostError:
        raise
    except Exception as error:  # noqa: BLE001 - it ends the trial, not the workers
        return Failure(_portable(error))


def _portable(error: Exception) -> Exception:
    """An error that can be pickled, with its traceback as a note and without references."""
    note = traceback.format_exc()
    try:
        packed = ray.cloudpickle.dumps(error)  # type: ignore[no-untyped-call]  # Ray leaves it untyped
        portable: Exception = ray.cloudpickle.loads(packed)
    except Exception:  # noqa: BLE001 - pickling may raise anything
        portable = RuntimeError(f"{type(error).__name__}: {error}")
    portable.add_note(note)
    return portable
