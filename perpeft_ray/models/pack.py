"""`perpeft pack`: copies all that `export` and `explain` need into the study's own folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from perpeft_ray.data.folders import new_folder
from perpeft_ray.data.interactions import INTERACTIONS_FILE, ITEMS_FILE, Dataset
from perpeft_ray.encoder.source import TOYSHOP_CLIP, parse_encoder
from perpeft_ray.models.export import copy_encoder
from perpeft_ray.models.layout import ENCODER
from perpeft_ray.models.portable import DATA, open_workspace
from perpeft_ray.store.folder import StudyFolder
from perpeft_ray.store.weights import keep_weights


@dataclass(frozen=True)
class Packed:
    """Content of a packed study's folder."""

    trials: int
    """COMPLETE trials of the ablation with their weights."""
    without_weights: int
    """COMPLETE trials of the ablation whose weights are gone."""
    encoder: bool
    """Whether the foundation model is in the folder."""


def pack(folder: StudyFolder) -> Packed:
    """Put weights, data and a local encoder into a study's folder.

    Existing files stay. Weights are hard links if possible, the rest copies. Raises InputError if
    data or encoder cannot be read.
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


def _pack_data(dataset: Dataset, target: Path) -> None:
    if target.is_dir():
        return
    with new_folder(target) as temporary:
        images = dataset.items.image.dropna().unique().tolist()
        for name in (INTERACTIONS_FILE, ITEMS_FILE, *images):
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(dataset.root / name, temporary / name)
