"""Opens a finished trial with its weights, and computes its users' and items' embeddings.

The weights are in the study's folder, else in the storage's cache (`store/weights.py`).
Letters: U users, I items (0 is padding), G groups, D hidden units.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perpeft_ray.config import PERSONAL_METHODS, VECTOR_METHODS, TrialConfig
from perpeft_ray.data.interactions import Dataset
from perpeft_ray.data.split import Split
from perpeft_ray.errors import InputError
from perpeft_ray.models.portable import open_workspace
from perpeft_ray.recommender.model import Recommender
from perpeft_ray.recommender.sampling import last_inputs
from perpeft_ray.store.description import check_unchanged
from perpeft_ray.store.folder import StudyFolder
from perpeft_ray.store.weights import read_stage, read_weights
from perpeft_ray.train.build import build_model, build_vectors
from perpeft_ray.train.grouping import Grouping
from perpeft_ray.train.state import load_weights, new_state
from perpeft_ray.train.workspace import Workspace, open_split

BEST = "best"


@dataclass(frozen=True, eq=False)
class TrainedTrial:
    """A finished trial of a study, ready to compute with."""

    trial_id: str
    config: TrialConfig
    dataset: Dataset
    workspace: Workspace
    split: Split
    model: Recommender
    """In evaluation mode, with SASRec's weights of the selected epoch."""
    modules: dict[int, dict[str, nn.Parameter]]
    """Each group's tensors of the selected epoch; only group 0 with one module for all."""
    grouping: Grouping | None
    """None for methods without groups."""

    def modules_of_users(self, part: Literal["valid", "test"] = "test") -> NDArray[np.int32]:
        """Every user's module number for predicting `part`, int32 [U]."""
        if self.grouping is None or self.config.method not in PERSONAL_METHODS:
            return np.zeros(self.split.num_users, dtype=np.int32)
        return self.grouping.of(part)


def groups_with_users(trial: TrainedTrial) -> list[int]:
    """The groups that have users in training and for predicting test.

    K-means leaves groups empty if users are alike; their modules were never trained.
    """
    if trial.grouping is None:
        return list(trial.modules)
    return np.intersect1d(trial.grouping.valid, trial.grouping.test).tolist()  # type: ignore[no-any-return]  # NumPy says Any


def check_group(trial: TrainedTrial, name: str, group: int) -> None:
    """Raise InputError for an unknown group or one without users; `name`: of the setting."""
    if group not in trial.modules:
        raise InputError(f"`{name}` must be between 0 and {len(trial.modules) - 1}, but is {group}")
    used = groups_with_users(trial)
    if group not in used:
        raise InputError(
            f"`{name}` must be a group with users, one of {', '.join(map(str, used))}, but is "
            f"{group}"
        )


def choose_trial(folder: StudyFolder, which: str, method: str = "perpeft") -> str:
    """The id of a COMPLETE trial of a study: `which` itself, or for `best` the method's best.

    Best is the highest validation NDCG@20 among the method's trials of the ablation; test is not
    read. Raises InputError if there is no such trial.
    """
    trials = folder.trials()
    complete = trials[trials.status == "COMPLETE"]
    if which != BEST:
        if which not in set(complete.trial_id):
            raise InputError(
                f"`trial` must be best or the id of a COMPLETE trial of {folder.path}, "
                f"but is {which}"
            )
        return which
    of_method = complete[(complete.phase == "ablation") & (complete.method == method)]
    if of_method.empty:
        raise InputError(
            f"{folder.path} must have a COMPLETE trial of `method` {method} in its ablation, "
            "but has none"
        )
    return str(of_method.loc[of_method.valid_ndcg_at_20.idxmax(), "trial_id"])


def open_trained(folder: StudyFolder, trial_id: str) -> TrainedTrial:
    """A trial of a study with the weights of its selected epoch, on the CPU.

    `trial_id`: of a COMPLETE trial, as `choose_trial` returns it. Prepares the catalogue again if
    it is no longer cached. Raises InputError for an unknown trial, and if its weights are gone or
    belong to other data or another encoder.
    """
    config = folder.config_of(trial_id)
    dataset, workspace = open_workspace(folder)
    assert workspace.fingerprints is not None  # it has a data set
    place = folder.uri or folder.path
    check_unchanged(folder.description, workspace.fingerprints, folder.config, place)
    trained = read_weights(folder, workspace, trial_id)
    model = build_model(config, workspace, torch.device("cpu")).eval()
    split = open_split(workspace)
    if config.method in VECTOR_METHODS:
        model = build_vectors(config, model, trained.grouping, split.num_users).eval()
    modules = _put(model, config, trained.best.weights, config.modules)
    grouping = trained.grouping
    return TrainedTrial(trial_id, config, dataset, workspace, split, model, modules, grouping)


def open_global(folder: StudyFolder, trial: TrainedTrial) -> TrainedTrial:
    """A trial after stage 1: SASRec with one module for all users, as group 0.

    This model's outputs group the users. Raises InputError if stage 1 is gone.
    """
    stage = read_stage(folder, trial.workspace, trial.trial_id)
    model = build_model(trial.config, trial.workspace, torch.device("cpu")).eval()
    modules = _put(model, trial.config, stage.weights, 1)
    return replace(trial, model=model, modules=modules, grouping=None)


def item_embeddings(trial: TrainedTrial, group: int) -> Tensor:
    """All items' embeddings for a group, float32 [I+1, D]; row 0, the padding, is zero.

    For methods with a vector per user or group, ids and content side by side, [I+1, 2D].
    """
    return trial.model.embed_all(trial.modules[group])


def item_embedding(trial: TrainedTrial, item: int, group: int) -> Tensor:
    """The embedding of item 1..I for a group, float32 [D], without vectors of users or groups."""
    with torch.no_grad():
        return trial.model.embed(np.array([item]), trial.modules[group])[0]


def user_states(
    trial: TrainedTrial,
    users: NDArray[np.int64],
    group: int,
    embeddings: Tensor,
    part: Literal["valid", "test"] = "test",
) -> Tensor:
    """SASRec's outputs for users [n] under a group's module, float32, as wide as `embeddings`.

    `embeddings`: the group's `item_embeddings`; the product with an item's row is its score.
    `part`: what to predict, from training items, for test also from the validation item.
    """
    inputs = last_inputs(trial.split.known(part), users, trial.config.sequence_length)
    owners = users if trial.grouping is None else trial.grouping.of(part)[users]
    with torch.no_grad():
        return trial.model.queries(owners, inputs, embeddings, trial.modules[group])


def _put(
    model: Recommender, config: TrialConfig, weights: dict[str, Tensor], groups: int
) -> dict[int, dict[str, nn.Parameter]]:
    """Load SASRec's weights into the model, and the groups' into separate modules."""
    state = new_state(model, {group: model.new_module() for group in range(groups)}, config)
    load_weights(state, weights)
    return state.modules
