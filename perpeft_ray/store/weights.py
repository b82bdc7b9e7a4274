"""The weights of a study's finished trials, in its own folder or in the storage's cache.

STUDY/weights/trials/<key>.safetensors   the COMPLETE trials of the ablation
STUDY/weights/stage1/<key>.safetensors   the stage 1 of those with groups

The files are those of `<storage>/.cache/`. If `storage` is a folder, every run of a study adds
them, as hard links if the file system allows them; at a URI only `perpeft pack` does.
"""

from __future__ import annotations

from pathlib import Path

from perpeft_ray.config import SIMPLE_METHODS
from perpeft_ray.data.folders import link_or_copy
from perpeft_ray.data.places import read_file, subfolder
from perpeft_ray.errors import InputError
from perpeft_ray.store.files import whole_file
from perpeft_ray.store.folder import StudyFolder
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
    for trial_id in done.trial_id[done.groups.notna()]:
        _keep(folder, workspace.stages, STAGES, _keys(folder, workspace, trial_id, STAGES))
    kept = sum(
        _keep(folder, workspace.trials, TRIALS, _keys(folder, workspace, trial_id, TRIALS))
        for trial_id in done.trial_id
    )
    return kept, len(done) - kept


def read_weights(folder: StudyFolder, workspace: Workspace, trial_id: str) -> Trained:
    """The weights of a trial's selected epoch, from the study's folder or the storage's cache.

    Raises InputError, with what to copy, if neither has them.
    """
    keys = _keys(folder, workspace, trial_id, TRIALS)
    files = _files(folder, workspace.trials, TRIALS, keys)
    score = folder.trial(trial_id).valid_ndcg_at_20
    for file in files:
        trained = cached_trial(file)
        if trained is not None and trained.best.valid.ndcg_at_20 == score:
            return trained
    raise InputError(_gone(folder, f"the weights of {trial_id}", TRIALS, keys[0]))


def read_stage(folder: StudyFolder, workspace: Workspace, trial_id: str) -> Snapshot:
    """The stage 1 of a trial; places and errors as `read_weights`."""
    keys = _keys(folder, workspace, trial_id, STAGES)
    for file in _files(folder, workspace.stages, STAGES, keys):
        if (stage := read_stage_one(file)) is not None:
            return stage
    raise InputError(_gone(folder, f"stage 1 of {trial_id}", STAGES, keys[0]))


def _keys(folder: StudyFolder, workspace: Workspace, trial_id: str, part: str) -> list[str]:
    """The keys of a trial's weights; several if its dtype is not known here."""
    config, device = folder.config_of(trial_id), folder.trial(trial_id).device
    key = trial_key if part == TRIALS else stage_one_key
    dtypes = _AUTO if config.dtype == "auto" else (config.dtype,)
    return [key(config, workspace.fingerprint, f"{dtype}-{device}") for dtype in dtypes]


def _files(folder: StudyFolder, place: Path | str, part: str, keys: list[str]) -> list[Path | str]:
    """Possible places of entries, the study's own folder first."""
    own = folder.path / WEIGHTS / part
    return [entry(where, key) for key in keys for where in (own, place)]


def _keep(folder: StudyFolder, place: Path | str, part: str, keys: list[str]) -> bool:
    """Copy entries of the storage's cache into the study's folder; returns whether one is there."""
    files = _files(folder, place, part, keys)
    for own, file in zip(files[::2], files[1::2], strict=True):
        assert isinstance(own, Path)
        if own.exists():
            continue
        if isinstance(file, Path):
            if file.exists():
                own.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(file, own)
        elif (content := read_file(file)) is not None:
            with whole_file(own) as temporary:
                temporary.write_bytes(content)
    return any(isinstance(own, Path) and own.exists() for own in files[::2])


def _gone(folder: StudyFolder, what: str, part: str, key: str) -> str:
    return (
        f"{folder.path} must have {what} for its data and encoder as they are now, but neither "
        f"its {WEIGHTS}/ nor {folder.kept} has: if the study was copied, run `perpeft pack` on it "
        f"where it was run and copy its folder again, or copy .cache/{part}/{key}.safetensors "
        f"of the storage there to {subfolder(folder.kept, part)}; if data, encoder or perpeft-ray "
        "changed, put them back"
    )
