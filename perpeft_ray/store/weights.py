"""The weights of a study's finished trials, in its own folder or in the storage's cache.

STUDY/weights/trials/<key>.safetensors   the COMPLETE trials of the ablation
STUDY/weights/stage1/<key>.safetensors   the stage 1 of those with groups

The files are those of `<storage>/.cache/`. If `storage` is a folder, every run of a study adds
them, as hard links if the file system allows them; at a URI only `perpeft pack` does.
"""

from __future__ import annotations

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


def keep_weights(folder: StudyFolder, workspace: Workspace) -> tuple[int, int]:
    """Put the weights of the ablation's COMPLETE trials into the study's folder.

    Returns the number of trials with weights there, and of those whose weights are gone.
    """
    rows = folder.trials()
    complete = rows[(rows.phase == "ablation") & (rows.status == "COMPLETE")]
    done = complete[~complete.method.isin(SIMPLE_METHODS)]
    known = done[done.computed.notna()]  # others are of an older version
    for _, row in known[known.groups.notna()].iterrows():
        _keep(*_files(folder, workspace, row, STAGES))
    kept = sum(_keep(*_files(folder, workspace, row, TRIALS)) for _, row in known.iterrows())
    return kept, len(done) - kept


def read_weights(folder: StudyFolder, workspace: Workspace, trial_id: str) -> Trained:
    """The weights of a trial's selected epoch, from the study's folder or the storage's cache.

    Raises InputError, with what to copy, if neither has them.
    """
    row = folder.trial(trial_id)
    files = _files(folder, workspace, row, TRIALS)
    for file in files:
        trained = cached_trial(file)
        if trained is not None and trained.best.valid.ndcg_at_20 == row.valid_ndcg_at_20:
            return trained
    raise InputError(_gone(folder, f"the weights of {trial_id}", files[0]))


def read_stage(folder: StudyFolder, workspace: Workspace, trial_id: str) -> Snapshot:
    """The stage 1 of a trial; places and errors as `read_weights`."""
    files = _files(folder, workspace, folder.trial(trial_id), STAGES)
    for file in files:
        if (stage := read_stage_one(file)) is not None:
            return stage
    raise InputError(_gone(folder, f"stage 1 of {trial_id}", files[0]))


def _files(
    folder: StudyFolder, workspace: Workspace, row: pd.Series, part: str
) -> tuple[Path, Path | str]:
    """Where a trial's weights may be: in the study's folder, and in the storage's cache.

    Raises InputError for a row that an older version wrote, which does not say.
    """
    if pd.isna(row.computed):
        raise InputError(
            f"a trial's row must have `computed`, but that of {row.trial_id} in {folder.path} has "
            "none: another version of perpeft-ray wrote it; run the study again under a new --study"
        )
    key, cache = (
        (trial_key, workspace.trials) if part == TRIALS else (stage_one_key, workspace.stages)
    )
    name = key(config_of_row(row), workspace.fingerprint, row.computed)
    return Path(entry(folder.path / WEIGHTS / part, name)), entry(cache, name)


def _keep(own: Path, cached: Path | str) -> bool:
    """Copy a file of the cache into the study's folder; returns whether it is there."""
    if own.exists():
        return True
    if isinstance(cached, Path):
        if cached.exists():
            own.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(cached, own)
    elif (content := read_file(cached)) is not None:
        with whole_file(own) as temporary:
            temporary.write_bytes(content)
    return own.exists()


def _gone(folder: StudyFolder, what: str, own: Path) -> str:
    part = own.parent.name
    return (
        f"{folder.path} must have {what} for its data and encoder as they are now, but neither "
        f"its {WEIGHTS}/ nor {folder.kept} has: if the study was copied, run `perpeft pack` on it "
        f"where it was run and copy its folder again, or copy .cache/{part}/{own.name} "
        f"of the storage there to {subfolder(folder.kept, part)}; if data, encoder or perpeft-ray "
        "changed, put them back"
    )
