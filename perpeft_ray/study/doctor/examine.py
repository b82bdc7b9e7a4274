"""Collects facts for `perpeft doctor` from Ray and from every node."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perpeft_ray.config import StudyConfig
from perpeft_ray.data.interactions import Dataset
from perpeft_ray.data.places import reached, read_file, remove_folder, subfolder, write_file
from perpeft_ray.errors import InputError
from perpeft_ray.study.doctor import diagnosis, node_report
from perpeft_ray.study.doctor.diagnosis import Check
from perpeft_ray.study.doctor.node_report import NodeQuery, NodeReport
from perpeft_ray.study.runtime import ray_runtime, with_gpus, worker_counts

LIBRARIES = ("ray", "torch", "transformers", "peft")
"""Distributions that must be the same on every node, besides Python and this package."""
ANSWER_S = 120.0
"""Seconds for a node to answer: it starts a worker process and imports transformers."""
_DASHBOARD_S = 10.0
_DASHBOARD_STARTS_S = 30.0


def diagnose(study: StudyConfig, storage: Path | str, data: Dataset | list[Path]) -> list[Check]:
    """Check Ray, started or joined as the study does it, and every node of it.

    `storage` is an absolute path or a URI; `data` is the study's open data set, or the raw files
    that the study will prepare. Leaves nothing behind. Raises InputError if this process cannot
    write to `storage`.
    """
    with _meeting_folder(storage) as meeting:
        try:
            with ray_runtime():
                return [_reached(), *_checks(with_gpus(study), storage, data, meeting)]
        # Ray raises any of these if it cannot be joined: other versions, a wrong token.
        except (ConnectionError, RuntimeError, InputError) as error:
            first = str(error).strip().partition("\n")[0]
            return [
                Check(
                    "Ray",
                    "not reached",
                    f"{first}; start it on the head node (`ray start --head`), set "
                    "RAY_ADDRESS=HOST:6379 and the same RAY_AUTH_MODE and token as there",
                )
            ]


def _checks(
    study: StudyConfig, storage: Path | str, data: Dataset | list[Path], meeting: Path | str
) -> Iterator[Check]:
    import ray

    from perpeft_ray.encoder.source import encoder_fingerprint

    url = _dashboard_url()
    status = _status_without_token(url)
    yield diagnosis.check_dashboard(url, status)
    yield diagnosis.check_authentication(status)

    nodes = {_name(node): node for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]  # Ray leaves it untyped
    # Only the main process prepares raw files, into the storage.
    files = {} if isinstance(data, list) else _files(data)
    ids = {name: node["NodeID"] for name, node in nodes.items()}
    reports = _ask(ids, study.encoder, files, meeting)
    own = node_report.library_versions(LIBRARIES)
    yield diagnosis.check_answers(reports, ANSWER_S)
    yield diagnosis.check_versions(own, reports)
    resources = {name: node["Resources"] for name, node in nodes.items()}
    parallel = worker_counts(study).get("parallel_workers", 0)
    yield diagnosis.check_resources(study, parallel, resources, joined="RAY_ADDRESS" in os.environ)
    sign = _sign(meeting).encode()
    arrived = {name: read_file(subfolder(meeting, node)) == sign for name, node in ids.items()}
    yield diagnosis.check_storage(str(storage), reports, arrived)
    if isinstance(data, list):
        sizes = [file.stat().st_size for file in data]
        yield diagnosis.check_raw_files(study.dataset, sizes)
    else:
        yield diagnosis.check_catalogue(study.dataset, len(files), reports)
    fingerprint = encoder_fingerprint(study.encoder)
    yield diagnosis.check_encoder(study.encoder, fingerprint, reports)
    with_gpus = {name: ids[name] for name, has in resources.items() if has.get("GPU", 0) > 0}
    seen = _gpus(with_gpus) if study.gpus else {}
    yield diagnosis.check_gpus(study.gpus, seen)


@contextmanager
def _meeting_folder(storage: Path | str) -> Iterator[Path | str]:
    """A folder in the storage through which this process and the nodes read each other's files."""
    made = isinstance(storage, Path) and not storage.exists()
    meeting = subfolder(storage, f".doctor-{uuid.uuid4().hex}")
    with reached(str(storage)):
        write_file(subfolder(meeting, node_report.SIGN), _sign(meeting).encode())
    try:
        yield meeting
    finally:
        remove_folder(meeting)
        if made:
            Path(storage).rmdir()  # not if another process has written there meanwhile


def _sign(meeting: Path | str) -> str:
    """Content of a meeting folder's file: the folder's unique name."""
    return str(meeting).rpartition("/")[2]


def _reached() -> Check:
    import ray

    address = ray.get_runtime_context().gcs_address
    return Check("Ray", f"{ray.__version__} at {address}")


def _dashboard_url() -> str:
    import ray

    # For a joined Ray, nothing else returns the dashboard's address.
    context = ray.init(ignore_reinit_error=True, logging_level=logging.ERROR)
    return f"http://{context.dashboard_url}" if context.dashboard_url else ""


def _status_without_token(url: str) -> int | None:
    """HTTP status of the dashboard for a request without a token; None: no answer.

    Waits for the dashboard, which starts after Ray itself.
    """
    import urllib3

    if not url:
        return None
    deadline = time.monotonic() + _DASHBOARD_STARTS_S
    while True:
        try:
            answer = urllib3.request("GET", f"{url}/api/jobs/", timeout=_DASHBOARD_S, retries=False)
        except urllib3.exceptions.HTTPError:
            if time.monotonic() >= deadline:
                return None
            time.sleep(1)
        else:
            return answer.status


def _name(node: Mapping[str, Any]) -> str:
    """A node's name for people: its address, and the start of Ray's id for it."""
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"


def _files(dataset: Dataset) -> dict[str, int]:
    """Sizes of a folder's tables and first image; empty if no node needs them."""
    if dataset.uri.partition(":")[0] == "toyshop":
        return {}
    names = ["interactions.parquet", "items.parquet"]
    images = dataset.items["image"].dropna()
    names.extend(images.iloc[:1])
    paths = [(dataset.root / name).resolve() for name in names]
    return {str(path): path.stat().st_size for path in paths}


def _ask(
    ids: Mapping[str, str], encoder: str, files: dict[str, int], meeting: Path | str
) -> dict[str, NodeReport | None]:
    """Every node's report, by its name; None without an answer within ANSWER_S."""
    questions = {
        name: NodeQuery(
            meeting=str(meeting),
            sign=_sign(meeting),
            name=node,
            files=files,
            encoder=encoder,
            libraries=LIBRARIES,
        )
        for name, node in ids.items()
    }
    tasks = {
        name: _on(ids[name], node_report.report_node, num_cpus=0).remote(question)
        for name, question in questions.items()
    }
    return _answers(tasks)


def _gpus(ids: Mapping[str, str]) -> dict[str, int | None]:
    # A small share of a GPU: others may use it.
    tasks = {
        name: _on(node, node_report.visible_gpus, num_cpus=0, num_gpus=0.01).remote()
        for name, node in ids.items()
    }
    return _answers(tasks)


def _on(node: str, function: Any, **options: Any) -> Any:
    """A function as a task that runs only on one node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # By value: a node without this package answers too.
    ray.cloudpickle.register_pickle_by_value(node_report)  # type: ignore[no-untyped-call]  # Ray leaves it untyped
    affinity = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(function).options(scheduling_strategy=affinity, max_retries=0, **options)


def _answers(tasks: Mapping[str, Any]) -> dict[str, Any]:
    import ray

    done, late = ray.wait(list(tasks.values()), num_returns=len(tasks), timeout=ANSWER_S)
    for task in late:
        ray.cancel(task, force=True)
    answers: dict[str, Any] = {}
    for name, task in tasks.items():
        try:
            answers[name] = ray.get(task) if task in done else None
        except ray.exceptions.RayError:  # the node was lost, or cannot start a process
            answers[name] = None
    return answers
