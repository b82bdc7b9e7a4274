"""Rules that tie a study to its data and its machine; broken ones are told before any work."""

from __future__ import annotations

import numpy as np

from perpeft_ray.config import StudyConfig
from perpeft_ray.data.split import LeaveOneOut
from perpeft_ray.errors import InputError


def check_histories(split: LeaveOneOut, dataset: str) -> None:
    """Raise `InputError` where a user has trained on every item: no negative is left for them."""
    items = split.num_items + 1
    users = np.repeat(np.arange(split.num_users), np.diff(split.train.offsets))
    pairs = np.unique(users * items + split.train.items)
    distinct = np.bincount(pairs // items, minlength=split.num_users)
    (full,) = np.nonzero(distinct == split.num_items)
    if len(full):
        others = f" and {len(full) - 1} more" if len(full) > 1 else ""
        raise InputError(
            f"`dataset` {dataset} must leave every user an item without training interaction, but "
            f"user {split.user_ids[full[0]]!r}{others} has all {split.num_items}; leave out their "
            "interactions"
        )


def check_study(study: StudyConfig, num_users: int | None, *, has_images: bool) -> None:
    """Check what `StudyConfig` cannot know by itself.

    `num_users`: users of the data set, None where they are not known yet; `has_images`: whether
    the encoder sees images. Raises `InputError` where there are more groups than users, fewer
    search trials than variants (each variant needs a best setting), or a method that leaves out the
    only modality.
    """
    for method in ("without_text", "without_image"):
        if method in study.methods and not has_images:
            raise InputError(
                f"`methods` {method} needs an encoder of titles and images, but `encoder` is "
                f"{study.encoder}"
            )
    for groups in study.values("groups"):
        if num_users is not None and groups > num_users:
            raise InputError(
                f"`grouping.groups` must be between 1 and the number of users ({num_users}), "
                f"but is {groups}"
            )
    variants = study.values("variant")
    if study.search.trials < len(variants):
        raise InputError(
            f"`search.trials` must be at least the number of variants ({len(variants)}), "
            f"but is {study.search.trials}"
        )
