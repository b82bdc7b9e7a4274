"""Rules between a study and its data are checked before anything starts."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from perpeft_ray.data.interactions import Dataset
from perpeft_ray.data.split import Split, split_dataset
from perpeft_ray.errors import InputError
from perpeft_ray.study.check import check_histories


def _split(**histories: list[str]) -> Split:
    rows = [(user, item, time) for user, h in histories.items() for time, item in enumerate(h)]
    return split_dataset(
        Dataset(
            uri="parquet:shop",
            root=Path(),
            interactions=pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]),
            items=pd.DataFrame({"item_id": ["a", "b", "c"]}),
            fingerprint="",
            items_fingerprint="",
        )
    )


def test_a_user_who_has_trained_on_every_item_is_named() -> None:
    with pytest.raises(InputError) as error:
        check_histories(_split(anne=["a", "b", "c", "a"], bot=["a", "b", "c", "a", "b"]), "D")
    assert str(error.value) == (
        "`dataset` D must leave every user an item without training interaction, but user 'bot' "
        "has all 3; leave out their interactions"
    )


def test_two_such_users_are_counted() -> None:
    with pytest.raises(InputError, match="user 'x' and 1 more has all 3"):
        check_histories(_split(x=["a", "b", "c", "a", "b"], y=["c", "b", "a", "a", "b"]), "D")


def test_every_item_with_validation_and_test_is_fine() -> None:
    check_histories(_split(anne=["a", "a", "b", "c"], ben=["a", "b"]), "D")
