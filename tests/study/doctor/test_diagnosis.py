"""Each check of `perpeft doctor` on facts that are given, without Ray."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from perpeft_ray.config import SearchSettings, StudyConfig
from perpeft_ray.study.doctor import diagnosis
from perpeft_ray.study.doctor.node_report import MISSING, NodeReport

OWN = {"python": "3.11.7", "torch": "2.13.0+cpu", "perpeft-ray": "0.1.0"}


def report(**changes: Any) -> NodeReport:
    healthy: NodeReport = {
        "versions": dict(OWN),
        "storage": None,
        "catalogue": None,
        "encoder": None,
        "fingerprint": "abc",
    }
    return {**healthy, **changes}  # type: ignore[typeddict-item]


def study(at_a_time: int = 1, **changes: Any) -> StudyConfig:
    search = SearchSettings(max_concurrent=at_a_time)
    return replace(StudyConfig(search=search, parallel_workers=0), **changes)


def test_a_node_that_does_not_answer_is_named() -> None:
    assert diagnosis.check_answers({"a": report(), "b": report()}, 60).ok
    check = diagnosis.check_answers({"a": report(), "b": None, "c": None}, 60)
    assert check.found == "1 of 3 answer"
    assert check.change is not None
    assert check.change.startswith("b, c ran no task within 60 s")
    # What it would have said cannot be judged, and is not guessed.
    assert diagnosis.check_versions(OWN, {"a": report(), "b": None}).ok


def test_versions_differ_by_what_is_public_of_them() -> None:
    with_cuda = report(versions={**OWN, "torch": "2.13.0+cu130"})
    assert diagnosis.check_versions(OWN, {"a": with_cuda}).ok
    old = report(versions={**OWN, "torch": "2.12.1"})
    bare = report(versions={**OWN, "perpeft-ray": MISSING})
    check = diagnosis.check_versions(OWN, {"a": with_cuda, "b": old, "c": bare})
    assert check.change is not None
    assert check.change.startswith(
        "b has torch 2.12.1, not 2.13.0+cpu; c has perpeft-ray missing, not 0.1.0: "
    )


@pytest.mark.parametrize(
    ("config", "parallel", "nodes", "change"),
    [
        (study(2), 0, {"a": {"CPU": 2.0}}, None),
        (study(2, workers=2), 0, {"a": {"CPU": 2.0}, "b": {"CPU": 2.0}}, None),
        (study(1), 2, {"a": {"CPU": 2.0}}, None),
        (
            study(2, workers=2),
            0,
            {"a": {"CPU": 3.0}},
            "2 trials at a time of 2 workers need 4 places: add nodes with 1 place of 1 CPU, "
            "or run fewer trials at a time: --search.max-concurrent 1",
        ),
        (
            # Four CPUs in all, but a worker of three fits on no node.
            study(1, cpus_per_worker=3),
            0,
            {"a": {"CPU": 2.0}, "b": {"CPU": 2.0}},
            "1 trial at a time of 1 worker need 1 place: add nodes with 1 place of 3 CPUs",
        ),
        (
            study(1, workers=4),
            0,
            {"a": {"CPU": 3.0}},
            "1 trial at a time of 4 workers need 4 places: add nodes with 1 place of 1 CPU, "
            "or fewer workers per trial: --workers 3",
        ),
        (
            study(1),
            4,
            {"a": {"CPU": 3.0}},
            "4 parallel workers need 4 places: add nodes with 1 place of 1 CPU, "
            "or --parallel-workers 3",
        ),
        # Three thirds of a GPU are one GPU, whatever floating point says.
        (study(3, gpus_per_worker=1 / 3), 0, {"a": {"CPU": 8.0, "GPU": 1.0}}, None),
        (
            study(1, gpus_per_worker=1.0),
            0,
            {"a": {"CPU": 8.0}},
            "1 trial at a time of 1 worker need 1 place: add nodes with 1 place of 1 CPU and 1 GPU",
        ),
    ],
)
def test_resources(
    config: StudyConfig, parallel: int, nodes: dict[str, dict[str, float]], change: str | None
) -> None:
    assert diagnosis.check_resources(config, parallel, nodes).change == change


def test_a_study_that_starts_ray_itself_needs_room_for_one_trial() -> None:
    one = {"a": {"CPU": 1.0}}
    assert diagnosis.check_resources(study(2), 0, one, joined=False).ok
    assert not diagnosis.check_resources(study(2), 0, one, joined=True).ok
    assert not diagnosis.check_resources(study(2), 2, one, joined=False).ok


def test_storage_is_one_folder_or_says_where_it_is_not() -> None:
    reports = {"a": report(), "b": report()}
    assert diagnosis.check_storage("/s", reports, {"a": True, "b": True}).ok
    other = report(storage="cannot read it: No such file or directory")
    check = diagnosis.check_storage(
        "/s", {"a": report(), "b": other, "c": None}, {"a": False, "b": False, "c": False}
    )
    assert check.change is not None
    assert check.change.startswith(
        "what a wrote did not arrive; b cannot read it: No such file or directory: mount one"
    )


def test_catalogue_and_encoder_are_the_same_everywhere() -> None:
    reports = {"a": report(), "b": report(catalogue="cannot read /d/items.parquet: gone")}
    assert diagnosis.check_catalogue("toyshop", 0, reports).ok
    check = diagnosis.check_catalogue("parquet:/d", 2, reports)
    assert check.change is not None
    assert check.change.startswith("b cannot read /d/items.parquet: gone: ")
    assert diagnosis.check_encoder("toyshop-clip", "abc", reports).ok
    broken = {"a": report(fingerprint="xyz"), "b": report(encoder="no config.json")}
    check = diagnosis.check_encoder("/models/clip", "abc", broken)
    assert check.change is not None
    assert check.change.startswith(
        "a has another encoder under this name; b: no config.json; put it"
    )


def test_gpus_are_seen_by_torch_where_ray_has_them() -> None:
    assert diagnosis.check_gpus(0.0, {}).ok
    assert diagnosis.check_gpus(0.5, {"a": 1, "b": 2}).ok
    assert "no node has one" in diagnosis.check_gpus(1.0, {}).found
    check = diagnosis.check_gpus(1.0, {"a": 1, "b": 0, "c": None})
    assert check.change is not None
    assert check.change.startswith("torch sees none on b, c: ")


@pytest.mark.parametrize(
    ("status", "found"),
    [(401, "a request without a token is refused"), (200, "off"), (None, "unknown")],
)
def test_authentication_is_what_a_stranger_is_told(status: int | None, found: str) -> None:
    check = diagnosis.check_authentication(status)
    assert check.found == found
    assert check.ok == (status == 401)


def test_dashboard() -> None:
    assert diagnosis.check_dashboard("http://h:8265", 401).ok
    for url in ("", "http://h:8265"):
        check = diagnosis.check_dashboard(url, None)
        assert check.change is not None
        assert "--include-dashboard" in check.change
