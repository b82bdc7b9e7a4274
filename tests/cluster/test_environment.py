"""Trials on a joined cluster see the variables that the study was started with."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

SEEN = """
import os, ray
from perpeft_ray.study.runtime import ray_runtime
with ray_runtime():
    print("fast:", ray.get(ray.remote(lambda: os.environ.get("PERPEFT_FAST")).remote()))
"""


def test_variables_of_the_process_that_joins(nodes: Any) -> None:
    ended = nodes.run("python", "-c", SEEN, RAY_ADDRESS=nodes.address, PERPEFT_FAST="0")
    assert "fast: 0" in ended.stdout, ended.stdout + ended.stderr


def test_variables_of_a_job(nodes: Any) -> None:
    """Ray refuses a variable that both a job and its process give, unless told to join them."""
    given = json.dumps({"env_vars": {"PERPEFT_FAST": "0"}})
    ended = nodes.run(
        *("ray", "job", "submit", "--working-dir", ".", "--runtime-env-json", given, "--"),
        *("python", "-c", SEEN),
        RAY_API_SERVER_ADDRESS=nodes.dashboard,
    )
    assert "fast: 0" in ended.stdout, ended.stdout + ended.stderr
