"""Runs a study from its configuration to finished trials.

Imports Ray and torch after the checks, so that bad input is reported at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from perpeft_ray.config import AUTO, StudyConfig
from perpeft_ray.data.interactions import Dataset
from perpeft_ray.data.places import is_uri, reached
from perpeft_ray.data.sources import absolute_dataset
from perpeft_ray.data.split import repeat_shares
from perpeft_ray.encoder.source import absolute_encoder
from perpeft_ray.errors import InputError, StudyStoppedError, is_full_disk
from perpeft_ray.store.description import from_json, repeat_warnings
from perpeft_ray.store.folder import StudyFolder, described, storage_folder, study_place
from perpeft_ray.store.lease import Lease, leased, others_hold
from perpeft_ray.study.check import check_inputs, check_storage_outlives_job, check_trackers
from perpeft_ray.study.progress import Progress
from perpeft_ray.train.fingerprints import fingerprints

if TYPE_CHECKING:
    from perpeft_ray.study.trainable import Study


def run_study(
    config: StudyConfig,
    run_trials: Callable[[Study, Progress], None] | None = None,
    *,
    scientific: tuple[str, ...] = ("method", "variant"),
) -> Path | str:
    """Run or resume a study; returns the path or URI of its folder.

    `run_trials` runs the trials, by default those of the ablation; `scientific` as in
    `StudyFolder.create`. Raises InputError before anything is written, and StudyStoppedError if a
    disk is full or Ray has no room.
    """
    check_storage_outlives_job(config.storage)
    config = anywhere(config)
    storage = storage_folder(config.storage)
    own = storage / config.study
    kept = study_place(config.storage, config.study)
    with stopping_on_full_disk(own), Progress() as progress, contextlib.ExitStack() as stack:
        with _leaving_nothing_behind(storage, own):
            begun = described(kept)
            if begun and config.encoder == AUTO:
                was = from_json(StudyConfig, begun["config"], kept)
                config = dataclasses.replace(config, encoder=was.encoder)
            config, dataset = check_inputs(config, storage / ".cache", again=not begun)
            check_trackers(config)
            leases = [stack.enter_context(leased(own, progress.say))]
            if isinstance(kept, str):
                with reached(kept):
                    leases.append(stack.enter_context(leased(kept, progress.say)))
            now = fingerprints(dataset, config.encoder)
            repeats = repeat_shares(dataset, config.data)
            folder = StudyFolder.create(config, now, repeats, scientific=scientific)
            began = "resumes" if begun else "study"
            progress.say(f"{began} {config.study}: {config.dataset} with {config.encoder}")
            for warning in repeat_warnings(dataclasses.asdict(repeats)):
                progress.say(f"warning: {warning}")
            stack.callback(_keep_unless_lost, folder, leases)
            from perpeft_ray.study.questions import run_ablation
            from perpeft_ray.study.runtime import ray_for

            config = stack.enter_context(ray_for(config, own / "study.log"))
            study = _open_study(config, folder, dataset, stack, progress)
            study = dataclasses.replace(study, leases=tuple(leases))
        progress.say(
            f"{study.workspace.num_users} users, {study.workspace.num_items} items; "
            f"results in {kept}"
        )
        (run_trials or run_ablation)(study, progress)
    return kept


def anywhere(config: StudyConfig) -> StudyConfig:
    """The study with absolute paths, which mean the same in any folder."""

    def absolute(place: str) -> str:
        return place if is_uri(place) else str(Path(place).expanduser().absolute())

    return dataclasses.replace(
        config,
        dataset=absolute_dataset(config.dataset),
        encoder=absolute_encoder(config.encoder),
        storage=absolute(config.storage),
    )


def _open_study(
    config: StudyConfig,
    folder: StudyFolder,
    dataset: Dataset,
    stack: contextlib.ExitStack,
    progress: Progress,
) -> Study:
    from perpeft_ray.store.weights import keep_weights
    from perpeft_ray.study.ray_items import telling
    from perpeft_ray.study.trainable import Study
    from perpeft_ray.train.trial import run_trial
    from perpeft_ray.train.workspace import prepare_dataset

    workspace = prepare_dataset(
        dataset,
        config.encoder,
        folder.cache,
        telling(progress.prepared),
        data=config.data,
        kept=folder.kept,
    )
    if not folder.uri:
        stack.callback(keep_weights, folder, workspace)
    return Study(config=config, folder=folder, workspace=workspace, run=run_trial)


def _keep_unless_lost(folder: StudyFolder, leases: list[Lease]) -> None:
    if not any(lease.lost for lease in leases):
        folder.keep()


@contextlib.contextmanager
def _leaving_nothing_behind(storage: Path, folder: Path) -> Iterator[None]:
    """If the input turns out to be bad, remove the new storage or study folder.

    Keeps it if another process, started at the same time, uses it by now.
    """
    new = [path for path in (storage, folder) if not path.exists()][:1]
    try:
        yield
    except InputError:
        for path in new:
            if not others_hold(path):
                shutil.rmtree(path, ignore_errors=True)
        raise


@contextlib.contextmanager
def stopping_on_full_disk(folder: Path) -> Iterator[None]:
    """Raise StudyStoppedError if the block ends because a disk is full.

    `folder`: where the study writes, for the message.
    """
    try:
        yield
    except Exception as error:
        if not is_full_disk(error):
            raise
        free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
        raise StudyStoppedError(
            f"no room on the disk ({free / 1e6:.1f} MB are left in {folder}); make room, then "
            "rerun the same command to resume"
        ) from error
