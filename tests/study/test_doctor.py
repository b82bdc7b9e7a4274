"""Each check of `perpeft doctor` on given facts, without Ray, and what a node reports."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import perpeft_ray
from perpeft_ray.cli.main import perpeft
from perpeft_ray.config import SearchSettings, StudyConfig
from perpeft_ray.data.places import read_file, write_file
from perpeft_ray.encoder.source import encoder_fingerprint
from perpeft_ray.errors import InputError
from perpeft_ray.study import doctor, node_report
from perpeft_ray.study.doctor import (
    Check,
    check_answers,
    check_dashboard,
    check_gpus,
    check_reports,
    check_resources,
)
from perpeft_ray.study.node_report import (
    MISSING,
    SIGN,
    NodeQuery,
    NodeReport,
    library_versions,
    report_node,
    visible_gpus,
)
from tests.data.prepare.test_release import write_release

HEALTHY: NodeReport = {"versions": None, "storage": None, "catalogue": None, "encoder": None}


def study(at_a_time: int = 1, **changes: Any) -> StudyConfig:
    search = SearchSettings(max_concurrent=at_a_time)
    return replace(StudyConfig(search=search), **changes)


def test_a_node_that_does_not_answer_is_named() -> None:
    assert check_answers({"a": HEALTHY, "b": HEALTHY}, 60).ok
    check = check_answers({"a": HEALTHY, "b": None, "c": None}, 60)
    assert check.found == "1 of 3 answer"
    assert check.change is not None
    assert check.change.startswith("b, c ran no task within 60 s")


def test_a_report_names_each_node_with_something_wrong() -> None:
    reports = {
        "c": HEALTHY | {"storage": "cannot read it"},
        "a": HEALTHY | {"storage": "cannot write to it"},
        "b": HEALTHY,
        "silent": None,
    }
    assert check_reports(reports, "encoder", "the same", "advice") == Check("encoder", "the same")
    assert check_reports(reports, "storage", "one folder", "mount it") == Check(
        "storage", "wrong on 2 nodes", "a cannot write to it; c cannot read it: mount it"
    )


@pytest.mark.parametrize(
    ("config", "nodes", "change"),
    [
        (study(2), {"a": {"CPU": 2.0}}, None),
        (study(2, workers=2), {"a": {"CPU": 2.0}, "b": {"CPU": 2.0}}, None),
        (
            study(2, workers=2),
            {"a": {"CPU": 3.0}},
            "2 trials at a time of 2 workers need 4 places: add nodes with 1 place of 1 CPU, "
            "or run fewer trials at a time: --search.max-concurrent 1",
        ),
        (
            # Four CPUs in all, but a worker of three fits on no node.
            study(1, cpus_per_worker=3),
            {"a": {"CPU": 2.0}, "b": {"CPU": 2.0}},
            "1 trial at a time of 1 worker need 1 place: add nodes with 1 place of 3 CPUs",
        ),
        (
            study(1, workers=4),
            {"a": {"CPU": 3.0}},
            "1 trial at a time of 4 workers need 4 places: add nodes with 1 place of 1 CPU, "
            "or fewer workers per trial: --workers 3",
        ),
        # Three thirds of a GPU are one GPU, whatever floating point says.
        (study(3, gpus_per_worker=1 / 3), {"a": {"CPU": 8.0, "GPU": 1.0}}, None),
        (
            study(1, gpus_per_worker=1.0),
            {"a": {"CPU": 8.0}},
            "1 trial at a time of 1 worker need 1 place: add nodes with 1 place of 1 CPU and 1 GPU",
        ),
    ],
)
def test_resources(
    config: StudyConfig, nodes: dict[str, dict[str, float]], change: str | None
) -> None:
    assert check_resources(config, nodes).change == change


def test_a_study_that_starts_ray_itself_needs_room_for_one_trial() -> None:
    one = {"a": {"CPU": 1.0}}
    assert check_resources(study(2), one, joined=False).ok
    assert not check_resources(study(2), one, joined=True).ok
    assert not check_resources(study(2, workers=2), one, joined=False).ok


def test_torch_must_see_gpus_where_ray_has_them() -> None:
    assert check_gpus(0.0, {}).ok
    assert check_gpus(0.5, {"a": 1, "b": 2}).ok
    assert "no node has one" in check_gpus(1.0, {}).found
    check = check_gpus(1.0, {"a": 1, "b": 0, "c": None})
    assert check.change is not None
    assert check.change.startswith("torch sees none on b, c: ")


@pytest.mark.parametrize(
    ("url", "status", "answers", "found"),
    [
        ("http://h:8265", 401, True, "a request without a token is refused"),
        ("http://h:8265", 200, True, "off"),
        ("http://h:8265", None, False, "unknown"),
        ("", None, False, "unknown"),
    ],
)
def test_the_dashboard_answers_and_refuses_strangers(
    url: str, status: int | None, answers: bool, found: str
) -> None:
    dashboard, authentication = check_dashboard(url, status)
    assert dashboard.ok == answers
    assert authentication.found == found
    assert authentication.ok == (status == 401)


@pytest.fixture
def query(tmp_path: Path) -> NodeQuery:
    (tmp_path / SIGN).write_text("a sign")
    data = tmp_path / "items.parquet"
    data.write_bytes(b"12345")
    return {
        "meeting": str(tmp_path),
        "sign": "a sign",
        "files": {str(data): 5},
        "encoder": "toyshop-clip",
        "fingerprint": encoder_fingerprint("toyshop-clip"),
        "versions": library_versions(("ray", "no-such-library")),
    }


def test_a_healthy_node_complains_of_nothing(query: NodeQuery, tmp_path: Path) -> None:
    assert report_node(query, "node-1") == HEALTHY
    assert (tmp_path / "node-1").read_text() == "a sign"


def test_versions_of_this_process() -> None:
    assert library_versions(("ray", "no-such-library")) == {
        "python": ".".join(map(str, sys.version_info[:3])),
        "ray": metadata.version("ray"),
        "no-such-library": MISSING,
        "perpeft-ray": perpeft_ray.__version__,
    }


def test_versions_differ_by_their_public_part(
    query: NodeQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"ray": "2.60", "torch": "2.13.0+cu130", "perpeft-ray": MISSING}
    monkeypatch.setattr(node_report, "library_versions", lambda _: there)
    own = {"ray": "2.61", "torch": "2.13.0+cpu", "perpeft-ray": "0.1.0"}
    report = report_node(query | {"versions": own}, "node-1")
    assert report["versions"] == "has ray 2.60, not 2.61 and perpeft-ray missing, not 0.1.0"


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({"meeting": "/none"}, "storage", "cannot read it: No such file or directory"),
        ({"sign": "another"}, "storage", "has another file in its place"),
        ({"encoder": "/none"}, "encoder", "cannot load it: "),
        ({"fingerprint": "another"}, "encoder", "has another encoder under this name"),
        ({"files": {"/none": 1}}, "catalogue", "cannot read /none: No such file or directory"),
        ({"files": {__file__: 1}}, "catalogue", f"has another {__file__} ("),
    ],
)
def test_a_node_reports_what_is_not_as_it_should_be(
    query: NodeQuery, change: dict[str, Any], name: str, words: str
) -> None:
    report = report_node(query | change, "node-1")
    assert (report[name] or "").startswith(words)
    assert {found for found in report if report[found] is not None} == {name}


def test_a_storage_at_a_uri(query: NodeQuery, s3: str) -> None:
    meeting = f"{s3}/results/.doctor"
    write_file(f"{meeting}/{SIGN}", b"a sign")
    assert report_node({**query, "meeting": meeting}, "node-1")["storage"] is None
    assert read_file(f"{meeting}/node-1") == b"a sign"
    wrong = report_node({**query, "meeting": f"{s3}-none/results"}, "node-1")["storage"]
    assert (wrong or "").startswith("cannot read it: ")


def test_torch_sees_as_many_gpus_as_it_says() -> None:
    import torch

    assert visible_gpus() == torch.cuda.device_count()


def test_what_nodes_run_can_travel_by_value() -> None:
    """It must not refer to this package at its top: a node may not have it."""
    modules = {getattr(value, "__module__", "") or "" for value in vars(node_report).values()}
    assert {name for name in modules if name.startswith("perpeft")} == {node_report.__name__}


def test_raw_data_is_read_and_not_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Any] = []

    def diagnose(study: Any, storage: Path, data: Any) -> list[Check]:
        given.append(data)
        return [Check("catalogue", "fine")]

    monkeypatch.setattr(doctor, "diagnose", diagnose)
    release, storage = write_release(tmp_path / "arts"), tmp_path / "results"
    options = ["--storage", str(storage), "--dataset", f"release:{release}"]
    options += ["--encoder", "toyshop-clip"]
    before = sorted(tmp_path.rglob("*"))
    perpeft(["doctor", *options])
    assert [[file.name for file in files] for files in given] == [
        ["arts_final.txt", "arts_item2id_final.pickle", "arts_texts_final.pickle"]
    ]
    assert "fine" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(InputError, match="number of variants"):
        perpeft(["doctor", *options, "--search.trials", "2"])
