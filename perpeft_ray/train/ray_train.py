"""A trial on Ray Train workers: a thin adapter to `run_trial`.

Ray Train places the workers and, where one is lost, starts all of them again; the trial goes on
after its last checkpoint (`train/checkpoint.py`). What a worker raises itself would come again, so
it ends the trial: a loss that is not finite, memory that does not suffice, a full disk.

The number of workers is fixed. Ray Train's elastic `num_workers=(least, most)` would give the same
result, but starts with what is free at the moment, so that trials side by side would each get some
number, and starts all workers again for every change, which costs more than most trials are long.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from perpeft_ray.config import TrialConfig
from perpeft_ray.data.places import remove_folder, subfolder
from perpeft_ray.train.collective import PeerLostError, TorchCollective
from perpeft_ray.train.outcome import EpochRecord, TrialOutcome
from perpeft_ray.train.trial import run_trial
from perpeft_ray.train.workspace import Workspace

MAX_FAILURES = 3
"""Losses of workers that a trial survives; announced preemptions of nodes are not counted."""
MAX_STARTS = 10
"""Times that workers may wait for room (60 s each by Ray's default) before the trial fails."""
_TIMEOUT_S = 24 * 3600
"""Of collectives: a worker may wait for another trial's stage 1."""
_OWN_FILES = "ray_train"
"""Folder of Ray Train's own files beside the trial's checkpoints."""


def run_distributed(
    config: TrialConfig,
    workspace: Workspace,
    report: Callable[[EpochRecord], None],
    *,
    workers: int,
    cpus_per_worker: int,
    gpus_per_worker: float,
    checkpoints: Path | str,
    test: bool,
) -> TrialOutcome:
    """Run a trial in a group of Ray Train workers and return worker 0's outcome.

    Ray must be initialised. `report` is called in this process, once an epoch also where epochs are
    reported again after a worker was lost. `checkpoints` is the folder of this trial's own, as in
    `run_trial`, which every worker must see. What a worker raises is raised here.
    """
    # It takes no CPU, since the workers may need them all, and does not go with another node.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    channel: Queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "config": config,
            "workspace": workspace,
            "channel": channel,
            "threads": cpus_per_worker,
            "test": test,
            "checkpoints": checkpoints,
        },
        torch_config=TorchConfig(backend=_backend(gpus_per_worker), timeout_s=_TIMEOUT_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=gpus_per_worker > 0,
            resources_per_worker={"CPU": cpus_per_worker, "GPU": gpus_per_worker},
        ),
        run_config=ray.train.RunConfig(
            name=_OWN_FILES,
            storage_path=str(checkpoints),
            failure_config=ray.train.FailureConfig(  # type: ignore[call-arg]  # Ray Train v2 has it
                max_failures=MAX_FAILURES, controller_failure_limit=MAX_STARTS
            ),
            callbacks=[_EndsAtOwnErrors()],  # type: ignore[list-item]  # Ray Train v2 takes it
        ),
    )
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread below
            failures.append(error)

    fitting = threading.Thread(target=fit, name="ray-train", daemon=True)
    fitting.start()
    try:
        outcome = _listen(channel, report, fitting)
    finally:
        channel.shutdown(force=True)
    remove_folder(subfolder(checkpoints, _OWN_FILES))
    if failures:
        raise _cause(failures[0])
    if outcome is None:
        raise RuntimeError("Ray Train ended the trial without an outcome")
    remove_folder(checkpoints)
    return outcome


class _OwnError(Exception):
    """What a worker raised itself, and would raise again."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class _EndsAtOwnErrors(UserCallback):
    """Ends a run where a worker raised something itself.

    FailureConfig cannot tell that from a lost worker: it would train to the same error again, as
    often as it may. What is raised here, in Ray Train's controller, is not retried.
    """

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, _OwnError):
                raise ControllerError(error.error)


def _backend(gpus_per_worker: float) -> str:
    """NCCL refuses two workers on one GPU, which fractions allow; gloo takes CUDA tensors too."""
    return "cpu:gloo,cuda:nccl" if gpus_per_worker >= 1 else "gloo"


def _worker(loop: dict[str, Any]) -> None:
    """What each worker runs; worker 0 speaks for all."""
    torch.set_num_threads(loop["threads"])
    device = ray.train.torch.get_device()
    collective = TorchCollective()
    first = collective.rank == 0
    channel: Queue = loop["channel"]

    def report(record: EpochRecord) -> None:
        if first:
            channel.put(record)
        ray.train.report({"epoch": record.epoch, "loss": record.loss})

    try:
        outcome = run_trial(
            loop["config"],
            loop["workspace"],
            report,
            test=loop["test"],
            checkpoints=loop["checkpoints"],
            collective=collective,
            device=device,
        )
    except PeerLostError:
        raise
    except Exception as error:
        raise _OwnError(error) from error
    if first:
        channel.put(outcome)


def _listen(
    channel: Queue, report: Callable[[EpochRecord], None], fitting: threading.Thread
) -> TrialOutcome | None:
    """Pass new records on until training has ended; the outcome, if there was one."""
    outcome: TrialOutcome | None = None
    told = 0
    while True:
        alive = fitting.is_alive()  # asked before the channel, so that nothing put last is lost
        try:
            message = channel.get(timeout=0.5 if alive else 0.01)
        except Empty:
            if not alive:
                return outcome
            continue
        if isinstance(message, TrialOutcome):
            outcome = message
        elif message.epoch > told:
            told = message.epoch
            report(message)


def _cause(error: BaseException) -> BaseException:
    """What a worker raised, or what became of the one that was lost."""
    if isinstance(error, ControllerError):
        return error.controller_failure
    if isinstance(error, WorkerGroupError):
        failures = list(error.worker_failures.values())
        lost = [e for e in failures if not isinstance(e, PeerLostError)]
        first = next(iter(lost or failures), error)
        of_ray = getattr(first, "health_check_failure", first)
        if not isinstance(of_ray, _OwnError):
            told = RuntimeError(
                f"workers were lost {MAX_FAILURES + 1} times; killed for want of memory, or with "
                f"their node ({type(of_ray).__name__})"
            )
            told.__cause__ = of_ray
            return told
        return of_ray.error
    return error
