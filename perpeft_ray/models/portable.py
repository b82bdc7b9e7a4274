"""The data and encoder of a study, in its own folder; `store/weights.py` has its weights.

STUDY/
  data/      the data folder, after `perpeft pack`
  encoder/   the foundation model, after `perpeft pack`, if it is a local folder
"""

from __future__ import annotations

from perpeft_ray.data.interactions import Dataset, load_folder
from perpeft_ray.data.sources import open_dataset
from perpeft_ray.errors import InputError
from perpeft_ray.models.layout import ENCODER, encoder_inside, located_encoder
from perpeft_ray.store.folder import StudyFolder
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
