"""Data and encoder in a study's own folder (`perpeft pack`); `store/weights.py` has its weights.

STUDY/
  data/      the data folder, after `perpeft pack`
  encoder/   the foundation model, after `perpeft pack`, if it is a local folder
"""

from __future__ import annotations

import shutil
from pathlib import Path

from perpeft_ray.data.folders import new_folder
from perpeft_ray.data.interactions import INTERACTIONS_FILE, ITEMS_FILE, Dataset, load_folder
from perpeft_ray.data.sources import open_dataset
from perpeft_ray.encoder.source import TOYSHOP_CLIP, parse_encoder
from perpeft_ray.errors import InputError
from perpeft_ray.models.layout import ENCODER, copy_encoder, encoder_inside, located_encoder
from perpeft_ray.store.folder import StudyFolder
from perpeft_ray.store.weights import keep_weights
from perpeft_ray.train.workspace import Workspace, prepare_dataset

DATA = "data"


def open_workspace(folder: StudyFolder) -> tuple[Dataset, Workspace]:
    """A study's data set and its trials' workspace, prepared unless cached.

    Takes data and encoder from the study's folder, else those that the study names. Raises
    InputError if either is missing, with what to do about a copied study.
    """
    packed, config = folder.path / DATA, folder.config
    try:
        if packed.is_dir():
            dataset = load_folder(packed, config.dataset, config.data)
        else:
            dataset = open_dataset(config.dataset, folder.cache, config.data, again=False)
        encoder = config.encoder
        if (folder.path / ENCODER).is_dir():
            encoder = located_encoder(encoder_inside(encoder), folder.path)
        return dataset, prepare_dataset(
            dataset, encoder, folder.cache, data=config.data, kept=folder.kept
        )
    except InputError as error:
        raise InputError(
            f"{error}; if {folder.path} was copied from elsewhere, run `perpeft pack` on the study "
            "there and copy its folder again"
        ) from error


def pack(folder: StudyFolder) -> tuple[int, int, bool]:
    """Put weights, data and a local encoder into a study's folder.

    Returns the number of COMPLETE trials of the ablation with weights, of those whose weights are
    gone, and whether the encoder is in the folder. Existing files stay. Weights are hard links if
    possible, the rest copies. Raises InputError if data or encoder cannot be read.
    """
    dataset, workspace = open_workspace(folder)
    trials, without_weights = keep_weights(folder, workspace)
    if not (folder.path / DATA).is_dir():
        images = dataset.items.image.dropna().unique().tolist()
        with new_folder(folder.path / DATA) as temporary:
            for name in (INTERACTIONS_FILE, ITEMS_FILE, *images):
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(dataset.root / name, temporary / name)
    source = parse_encoder(workspace.encoder)
    local = Path(source.path).is_dir() and source.path != str(TOYSHOP_CLIP)
    if local and not (folder.path / ENCODER).is_dir():
        copy_encoder(workspace.encoder, folder.path)
    folder.keep("weights", "data", "encoder")
    return trials, without_weights, local
