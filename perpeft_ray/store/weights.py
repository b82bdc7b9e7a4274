"""The weights of a study's finished trials, in its own folder or in the storage's cache.

STUDY/weights/trials/<key>.safetensors   the COMPLETE trials of the ablation
STUDY/weights/stage1/<key>.safetensors   the stage 1 of those with groups

The files are those of `<storage>/.cache/`. If `storage` is a folder, every run of a study adds
them, as hard links if the file system allows them; at a URI only `perpeft pack` does.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pandas as pd

from perpeft_ray.config import SIMPLE_METHODS
from perpeft_ray.data.folders import link_or_copy
from perpeft_ray.data.places import read_file, subfolder
from perpeft_ray.errors import InputError
from perpeft_ray.store.files import whole_file
from perpeft_ray.store.folder import StudyFolder, config_of_row
from perpeft_ray.train.cache import cached_trial, entry, read_stage_one, stage_one_key, trial_key
from perpeft_ray.train.snapshot import Snapshot, Trained
from perpeft_ray.train.workspace import Workspace

WEIGHTS, TRIALS, STAGES = "weights", "trials", "stage1"
_AUTO = ("bfloat16", "float32", "bfloat16+float32")
"""Possible dtypes of `auto` on the machine that trained."""


def keep_weights(folder: StudyFolder, workspace: Workspace) -> tuple[int, int]:
    """Put the weights of the ablation's COMPLETE trials into the study's folder.

    Returns the number of trials with weights there, and of those whose weights are gone.
    """
    rows = folder.trials()
    complete = rows[(rows.phase == "ablation") & (rows.status == "COMPLETE")]
    done = complete[~complete.method.isin(SIMPLE_METHODS)]
    for _, row in done[done.groups.notna()].iterrows():
        _keep(_files(folder, workspace, row, STAGES))
    kept = sum(_keep(_files(folder, workspace, row, TRIALS)) for _, row in done.iterrows())
    return kept, len(done) - kept


def read_weights(folder: StudyFolder, workspace: Workspace, trial_id: str) -> Trained:
    """The weights of a trial's selected epoch, from the study's folder or the storage's cache.

    Raises InputError, with what to copy, if neither has them.
    """
    row = folder.trial(trial_id)
    files = _files(folder, workspace, row, TRIALS)
    for file in itertools.chain(*files):
        trained = cached_trial(file)
        if trained is not None and trained.best.valid.ndcg_at_20 == row.valid_ndcg_at_20:
            return trained
    raise InputError(_gone(folder, f"the weights of {trial_id}", files[0][0]))


def read_stage(folder: StudyFolder, workspace: Workspace, trial_id: str) -> Snapshot:
    """The stage 1 of a trial; places and errors as `read_weights`."""
    files = _files(folder, workspace, folder.trial(trial_id), STAGES)
    for file in itertools.chain(*files):
        if (stage := read_stage_one(file)) is not None:
            return stage
    raise InputError(_gone(folder, f"stage 1 of {trial_id}", files[0][0]))


def _files(
    folder: StudyFolder, workspace: Workspace, row: pd.Series, part: str
) -> list[tuple[Path, Path | str]]:
    """Where a trial's weights may be: in the study's folder, and in the storage's cache.

    Several pairs if the trial's dtype is not known here.
    """
    key, cache = (
        (trial_key, workspace.trials) if part == TRIALS else (stage_one_key, workspace.stages)
    )
    config = config_of_row(row)
    dtypes = _AUTO if config.dtype == "auto" else (config.dtype,)
    keys = [key(config, workspace.fingerprint, f"{dtype}-{row.device}") for dtype in dtypes]
    own = folder.path / WEIGHTS / part
    return [(Path(entry(own, key)), entry(cache, key)) for key in keys]


def _keep(files: list[tuple[Path, Path | str]]) -> bool:
    """Copy files of the cache into the study's folder; returns whether one is there."""
    for own, cached in files:
        if own.exists():
            continue
        if isinstance(cached, Path):
            if cached.exists():
                own.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(cached, own)
        elif (content := read_file(cached)) is not None:
            with whole_file(own) as temporary:
                temporary.write_bytes(content)
    return any(own.exists() for own, _ in files)


def _gone(folder: StudyFolder, what: str, own: Path) -> str:
    part = own.parent.name
    return (
        f"{folder.path} must have {what} for its data and encoder as they are now, but neither "
        f"its {WEIGHTS}/ nor {folder.kept} has: if the study was copied, run `perpeft pack` on it "
        f"where it was run and copy its folder again, or copy .cache/{part}/{own.name} "
        f"of the storage there to {subfolder(folder.kept, part)}; if data, encoder or perpeft-ray "
        "changed, put them back"
    )
