"""The columns of `trials/`, `epochs/` and `users/`, derived from the written records.

A field added to `TrialConfig`, `TrialOutcome`, `EpochRecord` or `RankingMetrics` becomes a column
of its type. Every column has a fixed type, also in a file where it is null, so that the files of a
folder always read as one table. `results/README.md` says what each column means.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa

from perpeft_ray.config import SIMPLE_METHODS, DataSettings, TrialConfig
from perpeft_ray.metrics import RankingMetrics
from perpeft_ray.store.record import TrialRecord
from perpeft_ray.train.fingerprints import Fingerprints
from perpeft_ray.train.outcome import EpochRecord, TrialOutcome, UserRanks

_ARROW: dict[type, pa.DataType] = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    tuple: pa.list_(pa.float64()),
    datetime: pa.timestamp("us", tz="UTC"),
}
_WITHOUT_PREFIX = (TrialConfig, TrialOutcome)
"""Records whose fields become columns of the containing record, under their own names."""
_NOT_OF_TRAINING = (
    *(field.name for field in fields(DataSettings)),
    *("dataset", "encoder", "method", "seed", "mode"),
)
_OF_TRAINING = [f.name for f in fields(TrialConfig) if f.name not in _NOT_OF_TRAINING]
"""Settings that do not apply to a method without training."""
_OWN_TABLE = (Sequence, UserRanks)
"""Fields with their own table: `epochs` and `users`."""


def trial_table(record: TrialRecord, of: Fingerprints | None = None) -> pa.Table:
    """One row with the columns `TRIALS`; missing values are null.

    `of`: fingerprints of the trial's data and encoder; None: not known.
    """
    row = _values(TrialRecord, record)
    for field in fields(Fingerprints):
        row[f"{field.name}_fingerprint"] = of and getattr(of, field.name)
    row["config_hash"] = record.config.config_hash
    if record.config.method in SIMPLE_METHODS:
        row |= dict.fromkeys([*_OF_TRAINING, "selected_epoch", "still_improving"])
    if record.outcome is not None and record.outcome.encoder_parameters > 0:
        row["trainable_fraction"] = (
            record.outcome.trainable_parameters / record.outcome.encoder_parameters
        )
    return pa.Table.from_pylist([row], schema=TRIALS)


def epochs_table(record: TrialRecord) -> pa.Table:
    """One row per reported epoch, with the columns `EPOCHS`; possibly none."""
    rows = [{"trial_id": record.trial_id, **_values(EpochRecord, epoch)} for epoch in record.epochs]
    return pa.Table.from_pylist(rows, schema=EPOCHS)


def users_table(trial_id: str, users: UserRanks) -> pa.Table:
    """One row per user, with the columns `USERS`; -1 and NaN of `UserRanks` are null."""
    columns = {"trial_id": pa.array([trial_id] * len(users.user_id), pa.string())}
    for field in fields(UserRanks):
        values = getattr(users, field.name)
        hidden = None
        if values.dtype.kind in "if":
            hidden = np.isnan(values) if values.dtype.kind == "f" else values < 0
        columns[field.name] = pa.array(values, USERS.field(field.name).type, mask=hidden)
    return pa.table(columns, schema=USERS)


def _columns(
    kind: type, record: Any = None, prefix: str = ""
) -> Iterator[tuple[str, pa.DataType, Any]]:
    """Name, type and value of a record's columns in field order; values are None without it.

    Metrics get their field's prefix.
    """
    hints = get_type_hints(kind)
    for field in fields(kind):
        of_field = _kind(hints[field.name])
        value = None if record is None else getattr(record, field.name)
        if of_field in _ARROW:
            yield prefix + field.name, _ARROW[of_field], value
        elif of_field is RankingMetrics:
            yield from _columns(of_field, value, f"{prefix}{field.name}_")
        elif of_field in _WITHOUT_PREFIX:
            yield from _columns(of_field, value, prefix)
        elif of_field not in _OWN_TABLE:
            raise TypeError(f"no column type for {kind.__name__}.{field.name}: {of_field}")


def _values(kind: type, record: Any) -> dict[str, Any]:
    return {name: value for name, _, value in _columns(kind, record)}


def _schema(kind: type) -> pa.Schema:
    return pa.schema([pa.field(name, arrow) for name, arrow, _ in _columns(kind)])


def _kind(hint: Any) -> type:
    """The class behind a type hint: `X | None` is X, a Literal is the class of its values."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not types.NoneType)
        return _kind(hint)
    if origin is Literal:
        return type(get_args(hint)[0])
    return origin or hint  # type: ignore[no-any-return]  # typing says Any


def _trials() -> pa.Schema:
    schema = _schema(TrialRecord)
    before = schema.get_field_index(fields(TrialConfig)[0].name)
    schema = schema.insert(before, pa.field("config_hash", pa.string()))
    for field in reversed(fields(Fingerprints)):
        schema = schema.insert(before, pa.field(f"{field.name}_fingerprint", pa.string()))
    after = schema.get_field_index("trainable_parameters") + 1
    return schema.insert(after, pa.field("trainable_fraction", pa.float64()))


TRIALS = _trials()
"""One row per trial."""

EPOCHS = _schema(EpochRecord).insert(0, pa.field("trial_id", pa.string()))
"""One row per epoch of a trial."""

_USER_TYPES = {"user_id": pa.string(), "map_x": pa.float32(), "map_y": pa.float32()}
USERS = pa.schema(
    [pa.field("trial_id", pa.string())]
    + [pa.field(field.name, _USER_TYPES.get(field.name, pa.int64())) for field in fields(UserRanks)]
)
"""One row per user of a COMPLETE trial."""
