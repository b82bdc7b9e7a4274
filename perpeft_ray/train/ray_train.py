"""Groups of Ray Train workers that stay, and take trials from a broker one after another.

Ray Train places the workers and, where one is lost, starts its group again; the trial in hand then
continues from its last checkpoint (`train/checkpoint.py`). What a worker raises itself would come
again, so it ends the trial: a loss that is not finite, memory that does not suffice, a full disk.

The number of workers is fixed. Ray Train's elastic `num_workers=(least, most)` would give the same
result, but starts with what is free at the moment, and starts all workers again for every change.
"""

from __future__ import annotations

import gc
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
import ray.train
import torch
from ray.exceptions import OutOfMemoryError
from ray.train import UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from perpeft_ray.config import TrialConfig
from perpeft_ray.data.places import remove_folder
from perpeft_ray.train.broker import Broker, Failure, Task
from perpeft_ray.train.collective import Alone, Collective, PeerLostError, TorchCollective
from perpeft_ray.train.outcome import EpochRecord, TrialOutcome
from perpeft_ray.train.workspace import Workspace

_TIMEOUT_S = 24 * 3600
"""Of collectives: a worker may wait for another trial's stage 1. And of waiting for room, which the
study limits itself."""
_END_S = 30.0
"""For workers to end; those in mid-epoch go with the study's Ray job at the latest."""


class Runner(Protocol):
    """Trains a trial, on each of its workers: `perpeft_ray.train.trial.run_trial`."""

    def __call__(
        self,
        config: TrialConfig,
        workspace: Workspace,
        report: Callable[[EpochRecord], None],
        *,
        test: bool,
        checkpoints: Path | str,
        collective: Collective,
        device: torch.device,
        memory_gb: float,
    ) -> TrialOutcome:
        """Train, call `report` after every epoch and return what was measured."""


@dataclass(frozen=True)
class Groups:
    """Groups of workers, all alike."""

    count: int
    """Trials at a time."""
    workers: int
    """In each group."""
    cpus_per_worker: int
    gpus_per_worker: float
    memory_gb: float
    """As in `run_trial`."""


class Workers:
    """Running groups."""

    def __init__(self, broker: Any) -> None:
        self.broker = broker
        """Handle of the actor; its methods are those of `Broker`."""
        self._failures: list[BaseException] = []

    def look(self) -> None:
        """Raise what has ended a group, if one has ended."""
        if self._failures:
            raise RuntimeError("Ray Train cannot keep workers running") from self._failures[0]

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
    """Groups of Ray Train workers for the time of the block; Ray must be there.

    They start in the background. `files` is for Ray Train's own, which are removed afterwards; all
    nodes must see it, by path or URI.
    """
    # Read by Ray Train's controllers.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(_TIMEOUT_S)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    remove_folder(files)
    # It takes no CPU, since the workers may need them all, and does not go with another node.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": here}
    workers = Workers(ray.remote(Broker).options(**options).remote())
    threads = []
    for slot in range(groups.count):
        trainer = _trainer(slot, groups, run, workspace, files, workers.broker)
        threads.append(threading.Thread(target=workers.fit, args=(trainer,), daemon=True))
        threads[-1].start()
    try:
        yield workers
    finally:
        ray.get(workers.broker.close.remote())
        deadline = time.monotonic() + _END_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if not any(thread.is_alive() for thread in threads):  # else it still tells them to end
            ray.kill(workers.broker)
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
    """Tells the broker, from Ray Train's controller, that workers are gone."""

    def __init__(self, slot: int, broker: Any) -> None:
        self._slot = slot
        self._broker = broker

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """Called before the workers are started again, also for what a worker raised itself."""
        how, memory = _how(worker_exceptions)
        ray.get(self._broker.lost.remote(self._slot, how, for_want_of_memory=memory))


def _how(errors: dict[int, Exception]) -> tuple[str, bool]:
    """What became of workers, and whether Ray's memory monitor has killed one."""
    found = [getattr(error, "health_check_failure", error) for error in errors.values()]
    for error in found:
        if isinstance(error, OutOfMemoryError):
            # The first line has the node and its memory; what follows is general advice.
            return str(error).strip().partition("\n")[0], True
    first = [error for error in found if not isinstance(error, PeerLostError)] or found
    return type(first[0]).__name__, False


class _StoppedError(Exception):
    """Nobody waits for the trial any longer."""


class _RenewalError(Exception):
    """Ends the processes of a group, for Ray Train to start others."""


def _work(loop: dict[str, Any]) -> None:
    """What each worker runs; worker 0 speaks for all."""
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
            # Of a loss that is not finite every worker has raised; of another error, perhaps one,
            # which the others would wait for.
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
    except Exception as error:  # noqa: BLE001 - it ends the trial, and not the workers
        return Failure(_portable(error))


def _portable(error: Exception) -> Exception:
    """An error for another process, with its traceback as a note and without what it refers to."""
    note = traceback.format_exc()
    try:
        packed = ray.cloudpickle.dumps(error)  # type: ignore[no-untyped-call]  # Ray leaves it untyped
        portable: Exception = ray.cloudpickle.loads(packed)
    except Exception:  # noqa: BLE001 - some cannot be pickled, and raise anything
        portable = RuntimeError(f"{type(error).__name__}: {error}")
    portable.add_note(note)
    return portable
