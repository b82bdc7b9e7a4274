"""A trial on Ray Train workers, each the owner of whole groups: a thin adapter to `run_trial`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.exceptions import RayActorError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import WorkerGroupError
from ray.util.queue import Empty, Queue

from perpeft_ray.config import TrialConfig
from perpeft_ray.train.collective import TorchCollective
from perpeft_ray.train.outcome import EpochRecord, TrialOutcome
from perpeft_ray.train.trial import run_trial
from perpeft_ray.train.workspace import Workspace

_TIMEOUT_S = 24 * 3600
"""Of collectives: a worker may wait for another trial's stage 1."""


def run_distributed(
    config: TrialConfig,
    workspace: Workspace,
    report: Callable[[EpochRecord], None],
    *,
    workers: int,
    cpus_per_worker: int,
    gpus_per_worker: float,
    storage: Path,
    name: str,
    test: bool,
) -> TrialOutcome:
    """Run a trial in a group of Ray Train workers and return worker 0's outcome.

    Ray must be initialised. `report` is called in this process. `storage` and `name` are where Ray
    Train keeps its own files. What a worker raises is raised here.
    """
    # An actor that takes no CPU: the workers may need them all.
    channel: Queue = Queue(actor_options={"num_cpus": 0})
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "config": config,
            "workspace": workspace,
            "channel": channel,
            "threads": cpus_per_worker,
            "test": test,
        },
        torch_config=TorchConfig(timeout_s=_TIMEOUT_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=gpus_per_worker > 0,
            resources_per_worker={"CPU": cpus_per_worker, "GPU": gpus_per_worker},
        ),
        run_config=ray.train.RunConfig(name=name, storage_path=str(storage)),
    )
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread below
            failures.append(error)

    fitting = threading.Thread(target=fit, name=f"ray-train-{name}", daemon=True)
    fitting.start()
    try:
        outcome = _listen(channel, report, fitting)
    finally:
        channel.shutdown(force=True)
    if failures:
        raise _cause(failures[0])
    if outcome is None:
        raise RuntimeError(f"Ray Train ended trial {name} without an outcome")
    return outcome


def _worker(loop: dict[str, Any]) -> None:
    """What each worker runs; worker 0 speaks for all."""
    torch.set_num_threads(loop["threads"])
    device = ray.train.torch.get_device()
    collective = TorchCollective(device)
    first = collective.rank == 0
    channel: Queue = loop["channel"]

    def report(record: EpochRecord) -> None:
        if first:
            channel.put(record)
        ray.train.report({"epoch": record.epoch, "loss": record.loss})

    outcome = run_trial(
        loop["config"],
        loop["workspace"],
        report,
        test=loop["test"],
        collective=collective,
        device=device,
    )
    if first:
        channel.put(outcome)


def _listen(
    channel: Queue, report: Callable[[EpochRecord], None], fitting: threading.Thread
) -> TrialOutcome | None:
    """Pass records on until training has ended; the outcome, if there was one."""
    outcome: TrialOutcome | None = None
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
        else:
            report(message)


def _cause(error: BaseException) -> BaseException:
    """What a worker raised, where Ray Train says so; the first that is not merely a lost peer."""
    if isinstance(error, WorkerGroupError):
        own = [e for e in error.worker_failures.values() if not isinstance(e, RayActorError)]
        return next(iter(own or error.worker_failures.values()), error)
    return error
