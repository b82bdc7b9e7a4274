"""Processes that begin with what takes seconds to import."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from typing import Any

import torch.multiprocessing as mp

_PRELOADED = ("perpeft_ray.train.trial", "transformers", "peft")


def importing_once() -> ForkServerContext:
    """A context whose processes are forked from one that has imported the heavy libraries.

    That one starts with the first of them and ends with the tests.
    """
    multiprocessing.set_forkserver_preload(list(_PRELOADED))
    return multiprocessing.get_context("forkserver")


def run_workers(worker: Callable[..., None], world: int, *arguments: Any) -> None:
    """Call `worker(rank, world, *arguments)` for all ranks at once; raises what one raises."""
    method = importing_once().get_start_method()
    mp.start_processes(worker, (world, *arguments), nprocs=world, start_method=method)  # type: ignore[attr-defined]  # not public there
