"""The weights of a study's finished trials, in its own folder or in the storage's cache.

STUDY/weights/trials/<key>/   the COMPLETE trials of the ablation, as in `<storage>/.cache/trials/`
STUDY/weights/stage1/<key>/   the stage 1 of those with groups, as in `<storage>/.cache/stage1/`

They are there after every run of a study whose `storage` is a folder, as hard links where the file
system allows them. At a URI only `perpeft pack` puts them there.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pyarrow import fs

from perpeft_ray.config import SIMPLE_METHODS, TrialConfig
from perpeft_ray.data.folders import link_or_copy, new_folder
from perpeft_ray.data.places import resolve, subfolder
from perpeft_ray.errors import InputError
from perpeft_ray.store.folder import StudyFolder
from perpeft_ray.train.stage_cache import StageOne, read_stage_one, stage_one_key
from perpeft_ray.train.trial_cache import Trained, is_kept, read_trained, trial_key
from perpeft_ray.train.workspace import Workspace

WEIGHTS, TRIALS, STAGES = "weights", "trials", "stage1"


def keep_weights(folder: StudyFolder, workspace: Workspace) -> tuple[int, int]:
    """Put the weights of the ablation's COMPLETE trials into the study's folder.

    How many trials have theirs there, and of how many they are gone.
    """
    rows = folder.trials()
    complete = rows[(rows.phase == "ablation") & (rows.status == "COMPLETE")]
    done = complete[~complete.method.isin(SIMPLE_METHODS)]
    kept = 0
    for trial_id in done.trial_id:
        config = folder.config_of(trial_id)
        kept += _keep(folder, workspace.trials, TRIALS, trial_key(config, workspace.fingerprint))
        if config.groups is not None:
            key = stage_one_key(config, workspace.fingerprint)
            _keep(folder, workspace.stages, STAGES, key)
    return kept, len(done) - kept


def read_weights(
    folder: StudyFolder, workspace: Workspace, trial_id: str, config: TrialConfig
) -> Trained:
    """The weights of a trial's selected epoch, from the study's folder or the storage's cache.

    Raises InputError, with what to copy, where neither has them.
    """
    key = trial_key(config, workspace.fingerprint)
    for entry in (folder.path / WEIGHTS / TRIALS / key, subfolder(workspace.trials, key)):
        if (trained := read_trained(entry)) is not None:
            return trained
    raise InputError(_gone(folder, f"the weights of {trial_id}", TRIALS, key))


def read_stage(
    folder: StudyFolder, workspace: Workspace, trial_id: str, config: TrialConfig
) -> StageOne:
    """The stage 1 of a trial; places and errors as `read_weights`."""
    key = stage_one_key(config, workspace.fingerprint)
    for entry in (folder.path / WEIGHTS / STAGES / key, subfolder(workspace.stages, key)):
        if (stage := read_stage_one(entry)) is not None:
            return stage
    raise InputError(_gone(folder, f"stage 1 of {trial_id}", STAGES, key))


def _keep(folder: StudyFolder, place: Path | str, part: str, key: str) -> bool:
    """Copy an entry of the storage's cache into the study's folder; whether it is there now."""
    target = folder.path / WEIGHTS / part / key
    if target.is_dir():
        return True
    entry = subfolder(place, key)
    if not is_kept(entry):
        return False
    with new_folder(target) as temporary:
        if isinstance(entry, Path):
            shutil.copytree(entry, temporary, copy_function=link_or_copy, dirs_exist_ok=True)
        else:
            files, path = resolve(entry)
            fs.copy_files(path, str(temporary), source_filesystem=files)
    return True


def _gone(folder: StudyFolder, what: str, part: str, key: str) -> str:
    return (
        f"{folder.path} must have {what} for its data and encoder as they are now, but neither "
        f"its {WEIGHTS}/ nor {folder.kept} has: if the study was copied, run `perpeft pack` on it "
        f"where it was run and copy its folder again, or copy .cache/{part}/{key} of the storage "
        f"there to {subfolder(folder.kept, part, key)}; if data, encoder or perpeft-ray changed, "
        "put them back"
    )
