from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests import records
from tests.study import fakes


@pytest.fixture(scope="session")
def ray_runtime(one_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ray as a study has it, with its log; trials may be of `fake_run`."""
    from ray import cloudpickle

    from perpeft_ray.study.runtime import ray_for

    for module in (fakes, records):  # trials' processes cannot import test modules
        cloudpickle.register_pickle_by_value(module)
    log = tmp_path_factory.mktemp("ray") / "log.txt"
    with ray_for(fakes.small_study(), log):
        yield
        for thread in threading.enumerate():  # of stopped studies: Ray may crash under them
            if thread.name.endswith("(fit)"):
                thread.join(60)
