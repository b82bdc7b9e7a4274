"""`perpeft pack`: all that `export`, `explain` and `tables` need, into the study's own folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from perpeft_ray.config import SIMPLE_METHODS
from perpeft_ray.data.folders import link_or_copy, new_folder
from perpeft_ray.data.interactions import INTERACTIONS_FILE, ITEMS_FILE, Dataset
from perpeft_ray.data.places import resolve, subfolder
from perpeft_ray.encoder.source import TOYSHOP_CLIP, parse_encoder
from perpeft_ray.models.export import copy_encoder
from perpeft_ray.models.layout import ENCODER
from perpeft_ray.models.portable import DATA, STAGES, TRIALS, WEIGHTS, open_workspace
from perpeft_ray.models.trained import config_of
from perpeft_ray.results.folder import StudyFolder
from perpeft_ray.train.stage_cache import stage_one_key
from perpeft_ray.train.trial_cache import is_kept, trial_key
from perpeft_ray.train.workspace import Workspace


@dataclass(frozen=True)
class Packed:
    """What a study's folder has after `pack`."""

    trials: int
    """COMPLETE trials of the ablation with their weights."""
    without_weights: int
    """COMPLETE trials of the ablation whose weights are gone."""
    encoder: bool
    """Whether the foundation model is in the folder."""


def pack(folder: StudyFolder) -> Packed:
    """Put weights, data and, where it is a local folder, the encoder into a study's folder.

    What is there already stays. Weights are hard links where possible, the rest are copies. Raises
    InputError where data or encoder cannot be read.
    """
    dataset, workspace = open_workspace(folder)
    trials, without_weights = keep_weights(folder, workspace)
    _pack_data(dataset, folder.path / DATA)
    source = parse_encoder(workspace.encoder)
    local = Path(source.path).is_dir() and source.path != str(TOYSHOP_CLIP)
    if local and not (folder.path / ENCODER).is_dir():
        copy_encoder(workspace.encoder, folder.path)
    folder.keep()
    return Packed(trials, without_weights, encoder=local)


def keep_weights(folder: StudyFolder, workspace: Workspace) -> tuple[int, int]:
    """Put the weights of the ablation's COMPLETE trials into the study's folder.

    How many trials have theirs there, and of how many they are gone.
    """
    rows = folder.trials()
    complete = rows[(rows.phase == "ablation") & (rows.status == "COMPLETE")]
    done = complete[~complete.method.isin(SIMPLE_METHODS)]
    kept = 0
    for trial_id in done.trial_id:
        config = config_of(folder, trial_id)
        kept += _keep(folder, workspace.trials, TRIALS, trial_key(config, workspace.fingerprint))
        if config.groups is not None:
            key = stage_one_key(config, workspace.fingerprint)
            _keep(folder, workspace.stages, STAGES, key)
    return kept, len(done) - kept


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


def _pack_data(dataset: Dataset, target: Path) -> None:
    if target.is_dir():
        return
    with new_folder(target) as temporary:
        images = dataset.items.image.dropna().unique().tolist()
        for name in (INTERACTIONS_FILE, ITEMS_FILE, *images):
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(dataset.root / name, temporary / name)
