"""A study's folder: `study.json`, and a row, epochs and users for every trial."""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from perpeft_ray.config import SEARCH, StudyConfig, TrialConfig
from perpeft_ray.errors import InputError
from perpeft_ray.results.files import whole_file
from perpeft_ray.results.schema import EPOCHS, TRIALS, USERS, epochs_table, trial_table, users_table
from perpeft_ray.results.surroundings import git_revision, machine, versions
from perpeft_ray.study.record import Searched, TrialRecord

DESCRIPTION = "study.json"
NO_PART = {"storage", "checkpoints", "start_timeout_s", "log"}
"""Settings of a study that may change when it goes on: they are no part of its results."""


@dataclass(frozen=True)
class StudyFolder:
    """The folder `<storage>/<study>`; a `Recorder`, and safe to hand to other processes.

    Any number of processes may write different trials at once.
    """

    path: Path

    @classmethod
    def create(
        cls, config: StudyConfig, *, scientific: tuple[str, ...] = ("method", "variant", "mode")
    ) -> StudyFolder:
        """Make the folder of a study and its `study.json`, or take up the one that is there.

        `scientific`: fields of `TrialConfig` whose effect the study is about. Raises `InputError`
        where the folder has another study or cannot be made.
        """
        folder = cls(storage_folder(config.storage).resolve() / config.study)
        values = json.loads(json.dumps(dataclasses.asdict(config)))
        if (folder.path / DESCRIPTION).exists():
            _check_same(folder.description["config"], values, folder.path)
            return folder
        description = {
            "config": values,
            "parameters": declared_parameters(config, scientific),
            "versions": versions(),
            "git_revision": git_revision(),
            "machine": machine(),
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        try:
            with whole_file(folder.path / DESCRIPTION) as temporary:
                temporary.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"`storage` must be a folder that can be written, but {folder.path}: "
                f"{error.strerror}"
            ) from error
        return folder

    @classmethod
    def open(cls, path: Path) -> StudyFolder:
        """The folder of a study that exists. Raises `InputError` where it is none."""
        if not (path / DESCRIPTION).is_file():
            raise InputError(f"a study's folder must have {DESCRIPTION}, but {path} has none")
        return cls(path.resolve())

    @property
    def description(self) -> dict[str, Any]:
        """What `study.json` holds."""
        return json.loads((self.path / DESCRIPTION).read_text(encoding="utf-8"))

    @property
    def config(self) -> StudyConfig:
        """The study's configuration."""
        return _from_json(StudyConfig, self.description["config"])

    def write_trial(self, record: TrialRecord) -> None:
        """Write a trial's users, epochs and, last, its row; each file appears whole or not at all.

        Files of an earlier run of the same trial are replaced.
        """
        name = f"{record.trial_id}.parquet"
        if record.outcome is not None:
            _write(self.path / "users" / name, users_table(record.trial_id, record.outcome.users))
        _write(self.path / "epochs" / name, epochs_table(record))
        _write(self.path / "trials" / name, trial_table(record))

    def finished(self) -> set[tuple[str, str]]:
        """(phase, config_hash) of the trials written as COMPLETE or PRUNED."""
        trials = self._read("trials", TRIALS, ["status", "phase", "config_hash"])
        done = trials[trials.status.isin(["COMPLETE", "PRUNED"])]
        return set(zip(done.phase, done.config_hash, strict=True))

    def search_scores(self) -> dict[str, float]:
        """Validation NDCG@20 of the COMPLETE trials of the search, by config hash."""
        return self._of_search("valid_ndcg_at_20")

    def search_sizes(self) -> dict[str, int]:
        """Trainable parameters of the COMPLETE trials of the search, by config hash."""
        return self._of_search("trainable_parameters")

    def searched(self) -> dict[str, Searched]:
        """The COMPLETE and PRUNED trials of the search, by config hash, as they began."""
        trials = self._read("trials", TRIALS)
        ended = trials[(trials.phase == "search") & trials.status.isin(["COMPLETE", "PRUNED"])]
        epochs = self._read("epochs", EPOCHS)
        validated = epochs[(epochs.stage == 3) & epochs.valid_ndcg_at_20.notna()]
        of_trial = dict(iter(validated.groupby("trial_id")))
        found = {}
        for row in ended.sort_values("started_at").itertuples():
            own = of_trial.get(row.trial_id, validated[:0])
            pairs = zip(own.epoch.tolist(), own.best_valid_ndcg_at_20.tolist(), strict=True)
            done = row.status == "COMPLETE"
            found[row.config_hash] = Searched(
                row.status,
                row.valid_ndcg_at_20 if done else None,
                int(row.trainable_parameters) if done else None,
                list(pairs),
            )
        return found

    def trials(self) -> pd.DataFrame:
        """All rows written so far, as `pandas.read_parquet` gives them; no rows before the first.

        Columns: `perpeft_ray.results.schema.TRIALS`.
        """
        return self._read("trials", TRIALS)

    def epochs(self) -> pd.DataFrame:
        """The epochs of all trials; columns: `perpeft_ray.results.schema.EPOCHS`."""
        return self._read("epochs", EPOCHS)

    def users(self) -> pd.DataFrame:
        """The users of all COMPLETE trials; columns: `perpeft_ray.results.schema.USERS`."""
        return self._read("users", USERS)

    def users_of(self, trial_id: str) -> pd.DataFrame:
        """The users of one COMPLETE trial; columns: `perpeft_ray.results.schema.USERS`."""
        return pd.read_parquet(self.path / "users" / f"{trial_id}.parquet")

    def _of_search(self, column: str) -> dict[str, Any]:
        trials = self._read("trials", TRIALS, ["status", "phase", "config_hash", column])
        done = trials[(trials.phase == "search") & (trials.status == "COMPLETE")]
        return dict(zip(done.config_hash, done[column], strict=True))

    def _read(self, name: str, schema: pa.Schema, columns: list[str] | None = None) -> pd.DataFrame:
        folder = self.path / name
        if not any(folder.glob("[!.]*.parquet")):
            return schema.empty_table().select(columns or schema.names).to_pandas()
        return pd.read_parquet(folder, columns=columns)


def storage_folder(storage: str) -> Path:
    """The absolute path of a `storage` setting.

    Raises InputError for a URI, and for a path that is no folder.
    """
    if "://" in storage:
        raise InputError(f"`storage` must be a local or mounted folder, but is {storage}")
    path = Path(storage).absolute()
    if path.exists() and not path.is_dir():
        raise InputError(f"`storage` must be a folder, but {path} is a file")
    return path


def declared_parameters(config: StudyConfig, scientific: tuple[str, ...]) -> dict[str, list[str]]:
    """The fields of `TrialConfig` by their part in a study.

    Scientific: what the study is about. Nuisance: chosen anew for each of them by the search, or
    repeated (the seed), so that the comparison is fair. Fixed: the rest. Source: Google's Deep
    Learning Tuning Playbook.
    """
    searchable = {
        "variant": config.peft.variant,
        "rank": config.peft.rank,
        "groups": config.grouping.groups,
        "conditioning_weight": config.loss.conditioning_weight,
        "learning_rate": config.train.lr,
    }
    varied = {name for name, value in searchable.items() if value == SEARCH} | {"seed"}
    nuisance = varied - set(scientific)
    names = [field.name for field in dataclasses.fields(TrialConfig)]
    return {
        "scientific": [name for name in names if name in scientific],
        "nuisance": [name for name in names if name in nuisance],
        "fixed": [name for name in names if name not in nuisance and name not in scientific],
    }


def _write(path: Path, table: pa.Table) -> None:
    with whole_file(path) as temporary:
        pq.write_table(table, temporary)


def _check_same(there: dict[str, Any], here: dict[str, Any], path: Path) -> None:
    """Raise `InputError` for the first field that differs and is a part of the results."""
    old, new = _dotted(there), _dotted(here)
    for name in sorted(old.keys() | new.keys(), key=[*new, *old].index):
        if name not in NO_PART and old.get(name) != new.get(name):
            raise InputError(
                f"`{name}` must be {old.get(name)} as in the study that {path} holds, but is "
                f"{new.get(name)}; another `study` name keeps both"
            )


def _dotted(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _dotted(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _from_json(kind: type[Any], values: dict[str, Any]) -> Any:
    """A dataclass of dataclasses from its JSON form, where tuples are lists."""
    hints = typing.get_type_hints(kind)
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            arguments[name] = _from_json(typing.cast(type, hints[name]), value)
        else:
            arguments[name] = tuple(value) if isinstance(value, list) else value
    return kind(**arguments)
