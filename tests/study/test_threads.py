"""A trial in its own process trains on as many threads as it has processors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from perpeft_ray.study.plan import TrialSpec
from perpeft_ray.study.trainable import run_spec
from tests.study.whole_space import search_trials


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_threads_are_the_trials_share_whatever_the_environment_says(
    make_study: Callable[..., Any], small_study: Callable[..., Any], run_failing: Any
) -> None:
    seen: list[int] = []

    def run(config: Any, workspace: Any, report: Any, **more: Any) -> Any:
        seen.append(torch.get_num_threads())
        return run_failing(config, workspace, report, **more)

    study = make_study(small_study(cpus_per_worker=3), run=run)
    spec: TrialSpec = next(
        s for s in search_trials(study.config) if (s.config.variant, s.config.groups) == ("lora", 8)
    )
    run_spec(study, spec, lambda _: None)
    assert seen == [3]
