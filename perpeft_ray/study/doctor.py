"""`perpeft doctor`: examines a cluster before a study and says what to change."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import urllib3
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from perpeft_ray.config import StudyConfig
from perpeft_ray.data.interactions import Dataset
from perpeft_ray.data.places import reached, read_file, remove_folder, subfolder, write_file
from perpeft_ray.encoder.source import encoder_fingerprint
from perpeft_ray.errors import InputError
from perpeft_ray.screen import counted
from perpeft_ray.study import node_report
from perpeft_ray.study.node_report import NodeQuery, NodeReport
from perpeft_ray.study.room import resources_of_worker, with_gpus, workers_that_fit
from perpeft_ray.study.runtime import ray_runtime

LIBRARIES = ("ray", "torch", "transformers", "peft")
"""Distributions that must be the same on every node, besides Python and this package."""
ANSWER_S = 120.0
"""Seconds for a node to answer: it starts a worker process and imports transformers."""
_DASHBOARD_S = 10.0
_DASHBOARD_STARTS_S = 30.0

Reports = Mapping[str, NodeReport | None]
"""Each node's report, by name; None: no answer."""


@dataclass(frozen=True)
class Check:
    """One requirement of a study, and what was found."""

    name: str
    found: str
    change: str | None = None
    """What to change; None: nothing."""

    @property
    def ok(self) -> bool:
        """Whether nothing has to change."""
        return self.change is None


def diagnose(study: StudyConfig, storage: Path | str, data: Dataset | list[Path]) -> list[Check]:
    """Check Ray, started or joined as the study does it, and every node of it.

    `storage` is an absolute path or a URI; `data` is the study's open data set, or the raw files
    that the study will prepare. Leaves nothing behind. Raises InputError if this process cannot
    write to `storage`.
    """
    with _meeting_folder(storage) as meeting:
        try:
            with ray_runtime():
                address = ray.get_runtime_context().gcs_address
                checks = _checks(with_gpus(study), storage, data, meeting)
                return [Check("Ray", f"{ray.__version__} at {address}"), *checks]
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
    # For a joined Ray, nothing else returns the dashboard's address.
    context = ray.init(ignore_reinit_error=True, logging_level=logging.ERROR)
    url = f"http://{context.dashboard_url}" if context.dashboard_url else ""
    yield from check_dashboard(url, _status_without_token(url))

    # A node's name for people is its address, and the start of Ray's id for it.
    nodes = {
        f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})": node
        for node in ray.nodes()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
        if node["Alive"]
    }
    own = node_report.library_versions(LIBRARIES)
    # Only the main process prepares raw files, into the storage.
    files = {} if isinstance(data, list) else _files(data)
    query: NodeQuery = {
        "meeting": str(meeting),
        "sign": _sign(meeting).decode(),
        "files": files,
        "encoder": study.encoder,
        "fingerprint": encoder_fingerprint(study.encoder),
        "versions": own,
    }
    tasks = {
        name: _on(node, node_report.report_node, num_cpus=0).remote(query, node["NodeID"])
        for name, node in nodes.items()
    }
    reports: dict[str, NodeReport | None] = _answers(tasks)
    for name, report in reports.items():
        there = read_file(subfolder(meeting, nodes[name]["NodeID"]))
        if report and report["storage"] is None and there != _sign(meeting):
            report["storage"] = "wrote a file that did not arrive here"
    yield check_answers(reports, ANSWER_S)
    yield check_reports(
        reports,
        "versions",
        ", ".join(f"{name} {version}" for name, version in own.items()),
        "use the same image on every node, or install with --constraint constraints.txt",
    )
    resources = {name: node["Resources"] for name, node in nodes.items()}
    yield check_resources(study, resources, joined="RAY_ADDRESS" in os.environ)
    yield check_reports(
        reports,
        "storage",
        f"{storage} is one folder, written and read on every node",
        "mount one file system at this path on every node, for the user that runs Ray",
    )
    if isinstance(data, list):
        sizes = [file.stat().st_size for file in data]
        catalogue = (
            f"{counted(len(sizes), 'raw file')}, {sum(sizes) / 1e6:.1f} MB, can be read here; the "
            "study prepares the data set in its storage"
        )
        yield Check("catalogue", f"{study.dataset}: {catalogue}")
    else:
        yield check_reports(
            reports,
            "catalogue",
            f"{study.dataset} is the same on every node"
            if files
            else f"{study.dataset} is generated from its seed, no node needs a file",
            "put it where every node sees it",
        )
    yield check_reports(
        reports,
        "encoder",
        f"{study.encoder} is the same on every node",
        "put it where every node sees it",
    )
    seen = {}
    if study.gpus:
        # A small share of a GPU: others may use it.
        options = {"num_cpus": 0, "num_gpus": 0.01}
        tasks = {
            name: _on(node, node_report.visible_gpus, **options).remote()
            for name, node in nodes.items()
            if node["Resources"].get("GPU", 0) > 0
        }
        seen = _answers(tasks)
    yield check_gpus(study.gpus, seen)


def check_dashboard(url: str, status: int | None) -> list[Check]:
    """The dashboard, which takes jobs, must answer, and refuse a request without a token.

    `status`: HTTP status of its answer to one; None: no answer.
    """
    if not url or status is None:
        found = "no answer" + (f" at {url}" if url else "")
        change = (
            "install ray[default] and start Ray with its dashboard (--include-dashboard=true), "
            "reachable from here"
        )
        unknown = "unknown while the dashboard does not answer"
        return [Check("dashboard", found, change), Check("authentication", "unknown", unknown)]
    dashboard = Check("dashboard", f"{url} answers")
    if status in (401, 403):
        return [dashboard, Check("authentication", "a request without a token is refused")]
    change = (
        "whoever reaches this Ray can run code on it: "
        "`(umask 077; ray get-auth-token --generate)`, copy "
        "~/.ray/auth_token to every node, set RAY_AUTH_MODE=token and start Ray again"
    )
    return [dashboard, Check("authentication", "off", change)]


def check_answers(reports: Reports, seconds: float) -> Check:
    """Every node must run a task within `seconds`."""
    silent = sorted(name for name, report in reports.items() if report is None)
    found = f"{len(reports) - len(silent)} of {len(reports)} answer"
    change = (
        f"{', '.join(silent)} ran no task within {seconds:g} s: restart Ray there, or look into "
        "`ray list tasks` and the node's logs"
    )
    return Check("nodes", found, change if silent else None)


def check_reports(reports: Reports, name: str, found: str, advice: str) -> Check:
    """Every node that answers must have nothing wrong by its report.

    `found`: what holds then; `advice`: what to do about the others.
    """
    wrong = [
        f"{node} {report[name]}"
        for node, report in sorted(reports.items())
        if report is not None and report[name] is not None
    ]
    if not wrong:
        return Check(name, found)
    return Check(name, f"wrong on {counted(len(wrong), 'node')}", f"{'; '.join(wrong)}: {advice}")


def check_resources(
    study: StudyConfig, nodes: Mapping[str, Mapping[str, float]], *, joined: bool = True
) -> Check:
    """There must be room for the study's trials at a time, each worker on one node.

    `nodes`: each node's total resources by Ray's names. `joined`: whether it is a joined cluster,
    which may grow. On its own Ray a study runs as many trials at a time as fit, so room for one is
    enough.
    """
    worker = resources_of_worker(study)
    places = sum(workers_that_fit(node, worker) for node in nodes.values())
    cpus, gpus = (sum(node.get(kind, 0) for node in nodes.values()) for kind in ("CPU", "GPU"))
    found = (
        f"{counted(len(nodes), 'node')}, {counted(cpus, 'CPU')}, {counted(gpus, 'GPU')}: "
        f"{counted(places, 'place')} for a worker"
    )
    of_trial = study.workers
    at_a_time = study.search.max_concurrent
    if not joined:
        at_a_time = max(1, min(at_a_time, places // of_trial))
    needed = of_trial * at_a_time
    if places >= needed:
        return Check("resources", found)
    place = " and ".join(counted(amount, kind) for kind, amount in worker.items())
    advice = f"add nodes with {counted(needed - places, 'place')} of {place}"
    if places >= of_trial:
        advice += f", or run fewer trials at a time: --search.max-concurrent {places // of_trial}"
    elif places:
        advice += f", or fewer workers per trial: --workers {places}"
    what = f"{counted(at_a_time, 'trial')} at a time of {counted(of_trial, 'worker')}"
    return Check("resources", found, f"{what} need {counted(needed, 'place')}: {advice}")


def check_gpus(gpus_per_worker: float, seen: Mapping[str, int | None]) -> Check:
    """torch must see a GPU on every node with one in Ray.

    `seen`: GPUs that torch saw in a task with a GPU, by node with GPUs; None: no answer.
    """
    if not gpus_per_worker:
        return Check("GPUs", "none: trials train on the CPU (--gpus-per-worker)")
    if not seen:
        return Check("GPUs", "no node has one", "add nodes with GPUs, or --gpus-per-worker 0")
    blind = sorted(node for node, count in seen.items() if not count)
    if not blind:
        found = f"torch sees one on {', '.join(sorted(seen))}; a worker takes {gpus_per_worker:g}"
        return Check("GPUs", found)
    return Check(
        "GPUs",
        f"Ray has GPUs on {', '.join(sorted(seen))}",
        f"torch sees none on {', '.join(blind)}: install torch's CUDA build and a driver for it, "
        "and in containers NVIDIA's runtime",
    )


@contextmanager
def _meeting_folder(storage: Path | str) -> Iterator[Path | str]:
    """A folder in the storage through which this process and the nodes read each other's files."""
    made = isinstance(storage, Path) and not storage.exists()
    meeting = subfolder(storage, f".doctor-{uuid.uuid4().hex}")
    with reached(str(storage)):
        write_file(subfolder(meeting, node_report.SIGN), _sign(meeting))
    try:
        yield meeting
    finally:
        remove_folder(meeting)
        if made:
            Path(storage).rmdir()  # not if another process has written there meanwhile


def _sign(meeting: Path | str) -> bytes:
    """Content of a meeting folder's files: the folder's unique name."""
    return str(meeting).rpartition("/")[2].encode()


def _status_without_token(url: str) -> int | None:
    """HTTP status of the dashboard for a request without a token; None: no answer.

    Waits for the dashboard, which starts after Ray itself.
    """
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


def _files(dataset: Dataset) -> dict[str, int]:
    """Sizes of a folder's tables and first image; empty if no node needs them."""
    if dataset.uri.partition(":")[0] == "toyshop":
        return {}
    names = ["interactions.parquet", "items.parquet", *dataset.items["image"].dropna()[:1]]
    paths = [(dataset.root / name).resolve() for name in names]
    return {str(path): path.stat().st_size for path in paths}


def _on(node: Mapping[str, Any], function: Any, **options: Any) -> Any:
    """A function as a task that runs only on one node."""
    # By value: a node without this package answers too.
    ray.cloudpickle.register_pickle_by_value(node_report)  # type: ignore[no-untyped-call]  # Ray leaves it untyped
    affinity = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(function).options(scheduling_strategy=affinity, max_retries=0, **options)


def _answers(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """The tasks' results by node; None without one within ANSWER_S."""
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
