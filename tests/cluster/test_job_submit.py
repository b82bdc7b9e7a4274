"""`ray job submit` from this clone to a head node with token authentication."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

TINY = (
    "--peft.variant ia3 --grouping.groups 2 --loss.conditioning-weight 1 --train.lr 0.003 "
    "--search.trials 1 --search.max-concurrent 1 --train.epochs 1 --train.personal-epochs 1 "
    "--methods without_mm perpeft"
)


def submit(nodes: Any, name: str, arguments: str) -> Any:
    return nodes.run(
        *("ray", "job", "submit", "--working-dir", ".", "--submission-id", name, "--"),
        *("python", "studies/ablation_peft.py", *arguments.split()),
        RAY_API_SERVER_ADDRESS=nodes.dashboard,
    )


def test_a_study_as_a_job(nodes, tmp_path):
    ended = submit(nodes, "tiny", f"--storage {tmp_path}/results {TINY}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    study = tmp_path / "results" / "ablation_peft"
    trials = pd.read_parquet(study / "trials")
    assert set(trials.status) == {"COMPLETE"}
    ablation = trials[trials.phase == "ablation"]
    assert sorted(ablation.method) == ["perpeft", "without_mm"]
    assert ablation.test_ndcg_at_20.notna().all()
    assert "Test NDCG@20 × 100 on toyshop" in ended.stdout
    # Of the uploaded copy, which has no .git; the clone that the test runs in may have one.
    assert json.loads((study / "study.json").read_text())["git_revision"] is None


def test_a_relative_storage_is_bad_input(nodes):
    ended = submit(nodes, "relative", TINY)
    assert ended.returncode != 0
    output = ended.stdout + ended.stderr
    assert (
        "error: `storage` must be an absolute path or a URI in a Ray job (the working directory"
        in output
    )
    assert "job relative" in output
    assert "exit code 2" in output


def test_without_the_token_nothing_is_submitted(nodes, tmp_path):
    refused = nodes.run(
        *("ray", "job", "submit", "--", "true"),
        RAY_API_SERVER_ADDRESS=nodes.dashboard,
        RAY_AUTH_MODE="disabled",
        HOME=str(tmp_path),
    )
    assert refused.returncode != 0
    assert "authentication token" in (refused.stdout + refused.stderr).lower()
