"""What `export` and `explain` need of a study besides its tables, where it lies in its own folder.

STUDY/
  weights/trials/<key>/   the COMPLETE trials of the ablation, as in `<storage>/.cache/trials/`
  weights/stage1/<key>/   the stage 1 of those with groups, as in `<storage>/.cache/stage1/`
  data/                   the data folder, after `perpeft pack`
  encoder/                the foundation model, after `perpeft pack`, where it is a local folder

The weights are there after every run of a study whose `storage` is a folder, as hard links where
the file system allows them. At a URI only `perpeft pack` puts them there.
"""

from __future__ import annotations

from perpeft_ray.config import TrialConfig
from perpeft_ray.data.interactions import Dataset, load_folder
from perpeft_ray.data.places import subfolder
from perpeft_ray.data.sources import open_dataset
from perpeft_ray.errors import InputError
from perpeft_ray.models.layout import ENCODER, encoder_inside, located_encoder
from perpeft_ray.results.folder import StudyFolder
from perpeft_ray.train.stage_cache import StageOne, read_stage_one, stage_one_key
from perpeft_ray.train.trial_cache import Trained, read_trained, trial_key
from perpeft_ray.train.workspace import Workspace, prepare_dataset

WEIGHTS, TRIALS, STAGES = "weights", "trials", "stage1"
DATA = "data"


def open_workspace(folder: StudyFolder) -> tuple[Dataset, Workspace]:
    """The data set of a study, and what its trials share; prepared where it is not cached.

    Data and encoder are those in the study's folder, else those that the study names. Raises
    InputError, with what to do about a copied study, where either is not there.
    """
    packed, config = folder.path / DATA, folder.config
    try:
        if packed.is_dir():
            dataset = load_folder(packed, config.dataset)
        else:
            dataset = open_dataset(config.dataset, folder.cache, again=False)
        encoder = config.encoder
        if (folder.path / ENCODER).is_dir():
            encoder = located_encoder(encoder_inside(encoder), folder.path)
        return dataset, prepare_dataset(dataset, encoder, folder.cache, kept=folder.kept)
    except InputError as error:
        raise InputError(
            f"{error}; if {folder.path} was copied from elsewhere, run `perpeft pack` on the study "
            "there and copy its folder again"
        ) from error


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


def _gone(folder: StudyFolder, what: str, part: str, key: str) -> str:
    return (
        f"{folder.path} must have {what} for its data and encoder as they are now, but neither "
        f"its {WEIGHTS}/ nor {folder.kept} has: if the study was copied, run `perpeft pack` on it "
        f"where it was run and copy its folder again, or copy .cache/{part}/{key} of the storage "
        f"there to {subfolder(folder.kept, part, key)}; if data, encoder or perpeft-ray changed, "
        "put them back"
    )
