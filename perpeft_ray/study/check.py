"""Checks a study against its data before any work.

Imports torch only for the encoder, so that bad data are reported at once.
"""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from perpeft_ray.config import AUTO, StudyConfig
from perpeft_ray.data.interactions import Dataset
from perpeft_ray.data.places import is_uri
from perpeft_ray.data.sources import open_dataset
from perpeft_ray.data.split import Split, split_dataset
from perpeft_ray.encoder.source import default_encoder
from perpeft_ray.errors import InputError
from perpeft_ray.recommender.sampling import distinct_items
from perpeft_ray.screen import note

_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray's job supervisor, under exactly this name, and by nothing else."""


def check_inputs(
    config: StudyConfig, cache: Path, *, again: bool = True
) -> tuple[StudyConfig, Dataset]:
    """Open the dataset and the encoder, by default the data's default encoder.

    Returns the study with its encoder. Raises InputError for unusable ones, and for a variant that
    does not fit the encoder: its trials would all fail. `again`: as in `open_dataset`; a started
    study keeps the data that it started with.
    """
    dataset = open_dataset(config.dataset, cache, config.data, again=again)
    warn_of_empty_items(dataset)
    config = with_encoder(config, has_images=bool(dataset.items["image"].notna().any()))
    split = split_dataset(dataset, config.data)
    check_settings(config, split.num_users)
    check_histories(split)
    return config, dataset


def warn_of_empty_items(dataset: Dataset) -> None:
    """Say so if no item has a title or an image: all items then look the same to the encoder."""
    if not dataset.items["title"].fillna("").any() and not dataset.items["image"].notna().any():
        note("warning: no item has a title or an image, so the encoder has nothing to read")


def with_encoder(config: StudyConfig, *, has_images: bool) -> StudyConfig:
    """The study with an encoder: its own, or the default for its data."""
    if config.encoder != AUTO:
        return config
    encoder, weights = default_encoder(config.dataset, has_images=has_images)
    note(f"encoder: {weights}")
    return replace(config, encoder=encoder)


def check_settings(config: StudyConfig, num_users: int | None) -> None:
    """`check_inputs` without opening the dataset; `num_users` None: not known yet."""
    import torch

    from perpeft_ray.encoder.foundation import load_towers
    from perpeft_ray.encoder.preprocess import FoundationPreprocessor
    from perpeft_ray.encoder.sizes import module_parameters

    has_images = FoundationPreprocessor(config.encoder).image_size > 0
    check_study(config, num_users, has_images=has_images)
    for variant, rank in itertools.product(config.values("variant"), config.values("rank")):
        module_parameters(
            config.encoder,
            variant,
            rank=rank,
            bottleneck=config.peft.bottleneck,
            last_layers=config.peft.last_layers,
        )
    load_towers(config.encoder, "bfloat16", torch.device("cpu"))  # its weights fit its model


def check_histories(split: Split) -> None:
    """Raise InputError if a user trains on every item, with the user's id."""
    distinct_items(split.train, split.num_items, split.user_ids)


def check_study(study: StudyConfig, num_users: int | None, *, has_images: bool) -> None:
    """Check a study's settings against its data and encoder.

    `num_users`: users of the data set, None if not known yet; `has_images`: whether the encoder
    sees images. Raises `InputError` for more groups than users, fewer search trials than variants
    (each variant needs a best setting), and a method that omits the only modality.
    """
    for method in ("without_text", "without_image"):
        if method in study.methods and not has_images:
            raise InputError(
                f"`methods` {method} needs an encoder of titles and images, but `encoder` is "
                f"{study.encoder}"
            )
    for groups in study.values("groups"):
        if num_users is None or groups <= num_users:
            continue
        if (sample := study.data.sample_users) is not None and groups > sample:
            raise InputError(
                f"`data.sample_users` must be at least the number of groups ({groups}), but is "
                f"{sample}"
            )
        raise InputError(
            f"`{study.option('groups')}` must be between 1 and the number of users ({num_users}), "
            f"but is {groups}"
        )
    variants = study.values("variant")
    if study.search.trials < len(variants):
        raise InputError(
            f"`search.trials` must be at least the number of variants ({len(variants)}), "
            f"but is {study.search.trials}"
        )


def check_trackers(config: StudyConfig) -> None:
    """Raise InputError where `log` names a tracker whose package is not installed."""
    for name in config.log:
        if find_spec(name) is None:
            raise InputError(
                f"`log` must name installed packages, but {name} is not: "
                f"pip install 'perpeft-ray[{name}]'"
            )


def check_storage_outlives_job(storage: str) -> None:
    """Raise InputError for a relative `storage` in a Ray job: results would vanish with the job."""
    job = os.environ.get(_JOB_CONFIG)
    if job is not None and not is_uri(storage) and not Path(storage).is_absolute():
        name = json.loads(job)["metadata"].get("job_submission_id")
        raise InputError(
            "`storage` must be an absolute path or a URI in a Ray job (the working directory of "
            f"job {name} is a copy that Ray deletes), but is {storage!r}"
        )
