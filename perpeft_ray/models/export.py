"""`perpeft export`: writes a finished trial as a folder that works without the study."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import perpeft_ray
from perpeft_ray.config import Method
from perpeft_ray.data.folders import new_folder
from perpeft_ray.encoder.source import absolute_encoder, encoder_fingerprint
from perpeft_ray.errors import InputError
from perpeft_ray.models.adapters import ADAPTER, write_module
from perpeft_ray.models.card import model_card
from perpeft_ray.models.layout import (
    CARD,
    CENTROIDS,
    EMBEDDINGS,
    FORMAT,
    GROUPING,
    ITEMS,
    SASREC,
    ExportConfig,
    Precision,
    copy_encoder,
    encoder_inside,
    group_folder,
    located_encoder,
    write_config,
)
from perpeft_ray.models.trained import TrainedTrial, item_embeddings, open_global, open_trained
from perpeft_ray.store.folder import StudyFolder

EXPORTED_METHODS: tuple[Method, ...] = (
    "without_mm",
    "frozen_mm",
    "global",
    "large_global",
    "perpeft",
    "without_text",
    "without_image",
    "without_group_negatives",
)
"""Methods whose module for a user follows from the history."""


def export_trial(
    folder: StudyFolder,
    trial_id: str,
    out: Path,
    *,
    embeddings: Precision = "float32",
    with_encoder: bool = False,
) -> None:
    """Write a trial to the new folder `out`, whole or not at all; `layout.py` says what is in it.

    `embeddings`: type of the stored item embeddings; float16 halves them and rounds scores to three
    digits. `with_encoder` copies the foundation model into the folder, so that new items work
    offline. Raises InputError if `out` exists, if the method cannot be exported, and if the trial's
    weights are gone.
    """
    if out.exists():
        raise InputError(
            f"the folder to export to must not exist yet, but {out} does; "
            "remove it or choose another"
        )
    trial = open_trained(folder, trial_id)
    method = trial.config.method
    if method not in EXPORTED_METHODS:
        raise InputError(
            f"`method` must be one of {', '.join(EXPORTED_METHODS)} to be exported (a new user's "
            f"model follows from their history), but is {method}"
        )
    with new_folder(out) as temporary:
        _write(folder, trial, temporary, embeddings, with_encoder and method != "without_mm")


def _write(
    folder: StudyFolder, trial: TrainedTrial, out: Path, embeddings: Precision, with_encoder: bool
) -> None:
    name = trial.workspace.encoder
    encoder = encoder_inside(name) if with_encoder else absolute_encoder(name)
    if with_encoder:
        copy_encoder(name, out)
    dataset = trial.dataset
    of_export = ExportConfig(
        format=FORMAT,
        version=perpeft_ray.__version__,
        study=folder.config.study,
        trial_id=trial.trial_id,
        trial=trial.config,
        encoder=encoder,
        encoder_fingerprint=encoder_fingerprint(located_encoder(encoder, out)),
        data_fingerprint=dataset.fingerprint,
        users=trial.split.num_users,
        items=trial.split.num_items,
        interactions=len(dataset.interactions),
        embeddings=embeddings,
    )
    items = {
        "item_ids": dataset.items["item_id"].tolist(),
        "titles": dataset.items["title"].tolist(),
    }
    assert items["item_ids"] == trial.split.item_ids.tolist()
    (out / ITEMS).write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")
    _write_sasrec(trial, out)
    for group in trial.modules:
        _write_group(trial, group, group_folder(out, group), of_export)
    if trial.grouping is not None:
        assert trial.grouping.centroids is not None
        first = open_global(folder, trial)
        grouping = out / GROUPING
        _write_group(first, 0, grouping, of_export)
        _write_sasrec(first, grouping)
        centroids = torch.from_numpy(trial.grouping.centroids)
        save_file({"centroids": centroids}, grouping / CENTROIDS)
    write_config(of_export, out)
    has_adapter = any(group_folder(out, 0).glob(f"{ADAPTER}*"))
    card = model_card(of_export, folder.users_of(trial.trial_id), has_adapter)
    (out / CARD).write_text(card, encoding="utf-8")


def _write_sasrec(trial: TrainedTrial, folder: Path) -> None:
    tensors: dict[str, Tensor] = trial.model.backbone.state_dict()
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / SASREC)


def _write_group(trial: TrainedTrial, group: int, folder: Path, config: ExportConfig) -> None:
    folder.mkdir(parents=True)
    precision = torch.float16 if config.embeddings == "float16" else torch.float32
    embeddings = item_embeddings(trial, group).to(precision)
    save_file({"embeddings": embeddings.contiguous()}, folder / EMBEDDINGS)
    write_module(trial.model, trial.modules[group], trial.config, folder, config.encoder)
