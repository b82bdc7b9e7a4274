"""What a node answers to `perpeft doctor`: here, this process is the node."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

import perpeft_ray
from perpeft_ray.data.places import read_file, write_file
from perpeft_ray.encoder.source import encoder_fingerprint
from perpeft_ray.study.doctor.node_report import (
    MISSING,
    SIGN,
    NodeQuery,
    library_versions,
    report_node,
    visible_gpus,
)


@pytest.fixture
def question(tmp_path: Path) -> NodeQuery:
    (tmp_path / SIGN).write_text("a sign")
    data = tmp_path / "items.parquet"
    data.write_bytes(b"12345")
    return {
        "meeting": str(tmp_path),
        "sign": "a sign",
        "name": "node-1",
        "files": {str(data): 5},
        "encoder": "toyshop-clip",
        "libraries": ("ray", "no-such-library"),
    }


def test_a_healthy_node_complains_of_nothing(question: NodeQuery, tmp_path: Path) -> None:
    answer = report_node(question)
    assert (answer["storage"], answer["catalogue"], answer["encoder"]) == (None, None, None)
    assert answer["fingerprint"] == encoder_fingerprint("toyshop-clip")
    assert (tmp_path / "node-1").read_text() == "a sign"


def test_versions_of_this_process() -> None:
    found = library_versions(("ray", "no-such-library"))
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["ray"] == metadata.version("ray")
    assert found["no-such-library"] == MISSING
    assert found["perpeft-ray"] == perpeft_ray.__version__


def test_another_storage_catalogue_and_encoder(question: NodeQuery, tmp_path: Path) -> None:
    answer = report_node({**question, "meeting": str(tmp_path / "none"), "encoder": "/none"})
    assert answer["storage"] == "cannot read it: No such file or directory"
    assert answer["fingerprint"] is None
    assert answer["encoder"] is not None
    assert "/none" in answer["encoder"]
    (file,) = question["files"]
    answer = report_node({**question, "sign": "another", "files": {file: 6}})
    assert answer["storage"] == "has another file in its place"
    assert answer["catalogue"] == f"has another {file} (5 bytes, not 6)"
    answer = report_node({**question, "files": {f"{file}.none": 1}})
    assert answer["catalogue"] == f"cannot read {file}.none: No such file or directory"


def test_a_storage_at_a_uri(question: NodeQuery, s3: str) -> None:
    meeting = f"{s3}/results/.doctor"
    write_file(f"{meeting}/{SIGN}", b"a sign")
    answer = report_node({**question, "meeting": meeting})
    assert answer["storage"] is None
    assert read_file(f"{meeting}/node-1") == b"a sign"
    answer = report_node({**question, "meeting": f"{s3}-none/results"})
    assert answer["storage"] is not None
    assert answer["storage"].startswith("cannot read it: ")


def test_torch_sees_no_gpu_here_or_as_many_as_it_says() -> None:
    import torch

    assert visible_gpus() == torch.cuda.device_count()


def test_what_nodes_run_can_travel_by_value() -> None:
    """It must not refer to this package at its top: a node may not have it."""
    assert report_node.__module__ == "perpeft_ray.study.doctor.node_report"
    values = vars(sys.modules[report_node.__module__]).values()
    modules = {getattr(value, "__module__", "") or "" for value in values}
    assert {name for name in modules if name.startswith("perpeft")} == {report_node.__module__}
