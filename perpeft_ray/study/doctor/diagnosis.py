"""Judges facts about a cluster and says what to change; pure, without Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perpeft_ray.config import StudyConfig
from perpeft_ray.study.doctor.node_report import MISSING, NodeReport
from perpeft_ray.study.plan import resources_of_worker, workers_that_fit

Reports = Mapping[str, NodeReport | None]
"""Each node's report, by name; None: no answer."""
Resources = Mapping[str, Mapping[str, float]]
"""Each node's total resources, by its name and Ray's names of resources."""


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


def check_answers(reports: Reports, seconds: float) -> Check:
    """Every node must run a task within `seconds`."""
    silent = sorted(name for name, report in reports.items() if report is None)
    found = f"{len(reports) - len(silent)} of {len(reports)} answer"
    change = (
        f"{_names(silent)} ran no task within {seconds:g} s: restart Ray there, or look into "
        "`ray list tasks` and the node's logs"
    )
    return Check("nodes", found, change if silent else None)


def check_versions(own: Mapping[str, str], reports: Reports) -> Check:
    """Python and the libraries that affect results must be the same on every node as here.

    Local parts of a version do not count: a head without GPUs may have 2.13.0+cpu, workers +cu130.
    """
    wrong = [
        f"{node} has {name} {there}, not {own[name]}"
        for node, report in _answered(reports)
        for name, there in report["versions"].items()
        if _public(there) != _public(own[name])
    ]
    found = ", ".join(f"{name} {version}" for name, version in own.items())
    advice = "use the same image on every node, or install with --constraint constraints.txt"
    return Check("versions", found, _change(wrong, advice))


def check_resources(
    study: StudyConfig, parallel_workers: int, nodes: Resources, *, joined: bool = True
) -> Check:
    """There must be room for the study's trials at a time, each worker on one node.

    `parallel_workers`: Ray Train workers of the extra rows in parallel mode; 0: no such rows.
    `joined`: whether it is a joined cluster, which may grow. On its own Ray a study runs as many
    trials at a time as fit, so room for one is enough.
    """
    worker = resources_of_worker(study)
    places = sum(workers_that_fit(node, worker) for node in nodes.values())
    cpus, gpus = (sum(node.get(kind, 0) for node in nodes.values()) for kind in ("CPU", "GPU"))
    found = (
        f"{_count(len(nodes), 'node')}, {_count(cpus, 'CPU')}, {_count(gpus, 'GPU')}: "
        f"{_count(places, 'place')} for a worker"
    )
    of_trial = study.workers
    at_a_time = study.search.max_concurrent
    if not joined:
        at_a_time = max(1, min(at_a_time, places // of_trial))
    needed = max(of_trial * at_a_time, parallel_workers)
    if places >= needed:
        return Check("resources", found)
    place = _count(study.cpus_per_worker, "CPU") + (
        f" and {_count(study.gpus, 'GPU')}" if study.gpus else ""
    )
    advice = f"add nodes with {_count(needed - places, 'place')} of {place}"
    if places >= max(of_trial, parallel_workers):
        advice += f", or run fewer trials at a time: --search.max-concurrent {places // of_trial}"
    elif places >= of_trial:
        advice += f", or --parallel-workers {places}"
    elif places:
        advice += f", or fewer workers per trial: --workers {places}"
    if parallel_workers > of_trial * at_a_time:
        what = _count(parallel_workers, "parallel worker")
    else:
        what = f"{_count(at_a_time, 'trial')} at a time of {_count(of_trial, 'worker')}"
    return Check("resources", found, f"{what} need {_count(needed, 'place')}: {advice}")


def check_storage(storage: str, reports: Reports, arrived: Mapping[str, bool]) -> Check:
    """Every node must read what this process wrote, and this process what every node wrote.

    `arrived`: whether this process could read a node's file.
    """
    wrong = []
    for node, report in _answered(reports):
        if report["storage"] is not None:
            wrong.append(f"{node} {report['storage']}")
        elif not arrived[node]:
            wrong.append(f"what {node} wrote did not arrive")
    found = storage if wrong else f"{storage} is one folder, written and read on every node"
    advice = "mount one file system at this path on every node, for the user that runs Ray"
    return Check("storage", found, _change(wrong, advice))


def check_catalogue(dataset: str, files: int, reports: Reports) -> Check:
    """Every node must see the same files of the catalogue."""
    if not files:
        return Check("catalogue", f"{dataset} is generated from its seed, no node needs a file")
    wrong = [f"{n} {r['catalogue']}" for n, r in _answered(reports) if r["catalogue"] is not None]
    found = dataset if wrong else f"{dataset} is the same on every node"
    return Check("catalogue", found, _change(wrong, "put it where every node sees it"))


def check_raw_files(dataset: str, sizes: Sequence[int]) -> Check:
    """Report the readable raw files with these sizes; only the study's main process reads them."""
    what = f"{_count(len(sizes), 'raw file')}, {sum(sizes) / 1e6:.1f} MB, can be read here"
    return Check("catalogue", f"{dataset}: {what}; the study prepares the data set in its storage")


def check_encoder(encoder: str, fingerprint: str, reports: Reports) -> Check:
    """The encoder must load, and be the same, on every node."""
    wrong = []
    for node, report in _answered(reports):
        if report["encoder"] is not None:
            wrong.append(f"{node}: {report['encoder']}")
        elif report["fingerprint"] != fingerprint:
            wrong.append(f"{node} has another encoder under this name")
    found = encoder if wrong else f"{encoder} is the same on every node"
    change = f"{'; '.join(wrong)}; put it where every node sees it"
    return Check("encoder", found, change if wrong else None)


def check_gpus(gpus_per_worker: float, seen: Mapping[str, int | None]) -> Check:
    """torch must see a GPU on every node with one in Ray.

    `seen`: GPUs that torch saw in a task with a GPU, by node with GPUs; None: no answer.
    """
    if not gpus_per_worker:
        return Check("GPUs", "none: trials train on the CPU (--gpus-per-worker)")
    blind = [node for node, count in seen.items() if not count]
    if seen and not blind:
        found = f"torch sees one on {_names(list(seen))}; a worker takes {gpus_per_worker:g}"
        return Check("GPUs", found)
    if not seen:
        return Check("GPUs", "no node has one", "add nodes with GPUs, or --gpus-per-worker 0")
    return Check(
        "GPUs",
        f"Ray has GPUs on {_names(list(seen))}",
        f"torch sees none on {_names(blind)}: install torch's CUDA build and a driver for it, and "
        "in containers NVIDIA's runtime",
    )


def check_authentication(status: int | None) -> Check:
    """A request without a token must be refused.

    `status`: HTTP status of the dashboard's answer to one; None: no answer.
    """
    if status in (401, 403):
        return Check("authentication", "a request without a token is refused")
    change = (
        "whoever reaches this Ray can run code on it: "
        "`(umask 077; ray get-auth-token --generate)`, copy "
        "~/.ray/auth_token to every node, set RAY_AUTH_MODE=token and start Ray again"
    )
    if status is None:
        change = "unknown while the dashboard does not answer"
    return Check("authentication", "off" if status else "unknown", change)


def check_dashboard(url: str, status: int | None) -> Check:
    """The dashboard, which takes jobs, must answer. `status` as for `check_authentication`."""
    change = (
        "install ray[default] and start Ray with its dashboard (--include-dashboard=true), "
        "reachable from here"
    )
    if not url or status is None:
        return Check("dashboard", "no answer" + (f" at {url}" if url else ""), change)
    return Check("dashboard", f"{url} answers")


def _change(wrong: list[str], advice: str) -> str | None:
    return f"{'; '.join(wrong)}: {advice}" if wrong else None


def _answered(reports: Reports) -> list[tuple[str, NodeReport]]:
    return [(name, report) for name, report in sorted(reports.items()) if report is not None]


def _public(version: str) -> str:
    return version if version == MISSING else version.partition("+")[0]


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}" + ("" if number == 1 else "s")


def _names(nodes: list[str]) -> str:
    return ", ".join(sorted(nodes))
