"""A study's folder: `study.json`, and row, epochs and users of every trial."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from perpeft_ray.config import SIMPLE_METHODS, StudyConfig, TrialConfig
from perpeft_ray.data.places import is_uri, reached, read_file, subfolder
from perpeft_ray.data.split import RepeatShares
from perpeft_ray.data.tables import readable
from perpeft_ray.errors import InputError
from perpeft_ray.store.description import (
    as_json,
    check_same,
    check_unchanged,
    declared_parameters,
    from_json,
    git_revision,
    machine,
    versions,
)
from perpeft_ray.store.files import whole_file
from perpeft_ray.store.lease import HOLDER
from perpeft_ray.store.mirror import Mirror
from perpeft_ray.store.record import Searched, TrialRecord
from perpeft_ray.store.schema import EPOCHS, TRIALS, USERS, epochs_table, trial_table, users_table
from perpeft_ray.train.fingerprints import Fingerprints

DESCRIPTION = "study.json"
_OF_TRIALS = ("trials", "epochs", "users")
_OF_READERS = ("tables", "figures", "report.html", "explain", "weights", "data", "encoder")
"""What commands on a study add to its folder at a URI."""
_READER = ".read"
"""Ending of a reader's copy."""


@dataclass(frozen=True)
class StudyFolder:
    """The folder `<storage>/<study>`; can be sent to other processes.

    Any number of processes may write different trials at once. If `storage` is a URI, `path` is a
    local copy: files are uploaded after writing and downloaded before reading.
    """

    path: Path
    uri: str = ""
    """`<storage>/<study>` if `storage` is a URI."""
    fingerprints: Fingerprints | None = None
    """Fingerprints of the trials' data and encoder, part of every row; None: not known."""

    @classmethod
    def create(
        cls,
        config: StudyConfig,
        fingerprints: Fingerprints | None = None,
        repeats: RepeatShares | None = None,
        *,
        scientific: tuple[str, ...] = ("method", "variant"),
    ) -> StudyFolder:
        """Make the folder of a study and its `study.json`, or resume an existing one.

        `fingerprints`: of the present data and encoder; `repeats`: of the data. `scientific`:
        fields of `TrialConfig` that the study compares. Raises `InputError` if the folder has
        another study, or one with other data or another encoder, and `OSError` if it cannot be
        written.
        """
        path = storage_folder(config.storage).resolve() / config.study
        kept = study_place(config.storage, config.study)
        folder = cls(path, kept if isinstance(kept, str) else "", fingerprints)
        if folder.uri:  # the URI is the study, whatever an earlier run left here
            _empty(folder.path)
            with reached(folder.uri):
                folder._fetch()
        if (there := described(folder.path)) is not None:
            check_same(there["config"], config, folder.path)
            if fingerprints is not None:
                check_unchanged(there, fingerprints, config, folder.path)
            return folder
        description = {
            "config": as_json(config),
            "parameters": declared_parameters(config, scientific),
            "fingerprints": fingerprints and dataclasses.asdict(fingerprints),
            "repeats": repeats and dataclasses.asdict(repeats),
            "versions": versions(),
            "git_revision": git_revision(),
            "machine": machine(),
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with whole_file(folder.path / DESCRIPTION) as temporary:
            temporary.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        if folder.uri:
            with reached(folder.uri):
                folder._mirror.send([DESCRIPTION])
        return folder

    @classmethod
    def open(cls, place: Path | str) -> StudyFolder:
        """The folder of an existing study (path or URI). Raises `InputError` if it is not one.

        For a URI this makes a separate copy, so that it does not disturb a study running here.
        """
        if not isinstance(place, (str, os.PathLike)):
            raise InputError(f"a study's place must be a path or a URI, but is {place!r}")
        folder = cls(Path(place).resolve())
        if is_uri(place):
            uri = str(place).rstrip("/")
            storage, _, study = uri.rpartition("/")
            folder = cls(storage_folder(storage) / f"{study}{_READER}", uri)
            with reached(folder.uri):
                folder._fetch()
        _ = folder.description
        return folder

    @property
    def cache(self) -> Path:
        """The local cache that the studies of this storage share."""
        return self.path.parent / ".cache"

    @property
    def kept(self) -> Path | str:
        """Path or URI of the trained stages and trials of all studies in this storage."""
        return subfolder(self.uri.rpartition("/")[0], ".cache") if self.uri else self.cache

    def shown_path(self, file: Path) -> str:
        """The place of a file of the study for people: its URI if the study has one."""
        name = file.relative_to(self.path).as_posix()
        return f"{self.uri}/{name}" if self.uri else str(file)

    @property
    def description(self) -> dict[str, Any]:
        """The content of `study.json`. Raises InputError if it is missing or damaged."""
        found = described(self.path)
        if found is None:
            place = self.uri or self.path
            raise InputError(f"a study's folder must have {DESCRIPTION}, but {place} has none")
        return found

    @property
    def config(self) -> StudyConfig:
        """The study's configuration. Raises InputError if it is damaged or of another version."""
        return from_json(StudyConfig, self.description["config"], self.path)  # type: ignore[no-any-return]  # from_json says Any

    def write_trial(self, record: TrialRecord) -> None:
        """Write a trial's users, epochs and, last, its row; each file appears whole or not at all.

        Files of an earlier run of the same trial are replaced.
        """
        tables = {"epochs": epochs_table(record), "trials": trial_table(record, self.fingerprints)}
        if record.outcome is not None:
            tables = {"users": users_table(record.trial_id, record.outcome.users), **tables}
        for part, table in tables.items():
            name = f"{part}/{record.trial_id}.parquet"
            with whole_file(self.path / name) as temporary:
                pq.write_table(table, temporary)
            if self.uri:
                self._mirror.send([name])

    def keep(self, *made: str) -> None:
        """Upload the changed files of what a command has `made`, such as "tables", to the URI.

        Only the study's own process may omit `made`: it uploads all other files, such as journal
        and log, except trials, which are uploaded already. Does nothing without a URI.
        """
        if self.uri:
            besides = () if made else (*_OF_TRIALS, *_OF_READERS, HOLDER)
            self._mirror.send_changed(made, besides=besides)

    def finished(self) -> set[tuple[str, str]]:
        """(phase, config_hash) of the trials written as COMPLETE or PRUNED."""
        trials = self._read("trials", TRIALS, ["status", "phase", "config_hash"])
        done = trials[trials.status.isin(["COMPLETE", "PRUNED"])]
        return set(zip(done.phase, done.config_hash, strict=True))

    def searched(self) -> dict[str, Searched]:
        """The COMPLETE and PRUNED trials of the search by config hash, in order of their start."""
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
                config_of_row(row._asdict()),
                row.status,
                row.valid_ndcg_at_20 if done else None,
                int(row.trainable_parameters) if done else None,
                list(pairs),
            )
        return found

    def config_of(self, trial_id: str) -> TrialConfig:
        """The configuration of a trained trial, from its row. Raises InputError if there is
        none."""
        row = self.trial(trial_id)
        if row.method in SIMPLE_METHODS:
            raise InputError(f"`trial` must be one that was trained, but {trial_id} only counts")
        return config_of_row(row)

    def trial(self, trial_id: str) -> pd.Series:
        """The row of a trial. Raises InputError if there is none."""
        trials = self.trials()
        rows = trials[trials.trial_id == trial_id]
        if rows.empty:
            raise InputError(f"`trial` must be the id of a trial of {self.path}, but is {trial_id}")
        return rows.iloc[0]

    def trials(self) -> pd.DataFrame:
        """All rows written so far, as `pandas.read_parquet` returns them; possibly none.

        Columns: `perpeft_ray.store.schema.TRIALS`.
        """
        return self._read("trials", TRIALS)

    def epochs(self) -> pd.DataFrame:
        """The epochs of all trials; columns: `perpeft_ray.store.schema.EPOCHS`."""
        return self._read("epochs", EPOCHS)

    def users(self) -> pd.DataFrame:
        """The users of all COMPLETE trials; columns: `perpeft_ray.store.schema.USERS`."""
        return self._read("users", USERS)

    def users_of(self, *trial_ids: str) -> pd.DataFrame:
        """The users of some COMPLETE trials; columns: `perpeft_ray.store.schema.USERS`."""
        if self.uri:
            self._fetch("users")
        tables = [_read(self.path / "users" / f"{name}.parquet", USERS) for name in trial_ids]
        return pd.concat(tables or [USERS.empty_table().to_pandas()], ignore_index=True)

    @property
    def _mirror(self) -> Mirror:
        return Mirror(self.path, self.uri)

    def _fetch(self, part: str = "") -> None:
        """Download the files of a subfolder, or of all, that differ.

        A reader's copy is first emptied if its study was deleted at the URI.
        """
        copy = read_file(self.path / DESCRIPTION) if self.path.suffix == _READER else None
        if copy is not None and copy != read_file(subfolder(self.uri, DESCRIPTION)):
            _empty(self.path)
            part = ""
        self._mirror.fetch(part, besides=[HOLDER])

    def _read(self, name: str, schema: pa.Schema, columns: list[str] | None = None) -> pd.DataFrame:
        folder = self.path / name
        if self.uri:
            self._fetch(name)  # trials on other nodes write there
        if not any(folder.glob("[!.]*.parquet")):
            return schema.empty_table().select(columns or schema.names).to_pandas()
        return _read(folder, schema, columns)


def config_of_row(row: Mapping[str, Any] | pd.Series) -> TrialConfig:
    """The configuration of a row of `trials/`, which has a column per field."""

    def value(name: str) -> Any:
        if pd.isna(row[name]):
            return None
        return int(row[name]) if pa.types.is_integer(TRIALS.field(name).type) else row[name]

    return TrialConfig(
        **{field.name: value(field.name) for field in dataclasses.fields(TrialConfig)}
    )


def storage_folder(storage: str) -> Path:
    """The absolute path of a `storage` setting; for a URI, its local cache folder.

    The cache may be removed between runs: `$XDG_CACHE_HOME/perpeft-ray/…`. Raises InputError for a
    path that is not a folder.
    """
    if is_uri(storage):
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        digest = hashlib.sha256(storage.rstrip("/").encode()).hexdigest()[:16]
        return caches / "perpeft-ray" / digest
    path = Path(storage).absolute()
    if path.exists() and not path.is_dir():
        raise InputError(f"`storage` must be a folder, but {path} is a file")
    return path


def described(place: Path | str) -> dict[str, Any] | None:
    """The content of the `study.json` of a study's path or URI; None if there is none.

    Raises InputError if it is damaged, or if the place cannot be reached.
    """
    file = subfolder(place, DESCRIPTION)
    with reached(place):
        content = read_file(file)
    if content is None:
        return None
    try:
        found = json.loads(content)
    except ValueError as error:
        raise InputError(f"{file} must be JSON, but is damaged: {error}") from error
    for name in ("config", "parameters", "versions", "machine"):
        section = found.get(name) if isinstance(found, dict) else None
        if not isinstance(section, dict):
            raise InputError(f"{file} must have an object `{name}`, but it is {section!r}")
    return found  # type: ignore[no-any-return]  # json says Any


def study_place(storage: str, study: str) -> Path | str:
    """A study's place: `<storage>/<study>`, an absolute path or a URI."""
    return subfolder(storage if is_uri(storage) else storage_folder(storage), study)


def _read(path: Path, schema: pa.Schema, columns: list[str] | None = None) -> pd.DataFrame:
    """A table in a file, or in a folder of files. Raises InputError, with the damaged file."""
    try:
        return pd.read_parquet(path, columns=columns, schema=schema)
    except (pa.ArrowException, OSError):
        for file in sorted(path.glob("[!._]*")) if path.is_dir() else [path]:
            try:
                with readable(str(file)):
                    pd.read_parquet(file, schema=schema)
            except InputError as error:
                row = file.parents[1] / "trials" / file.name
                raise InputError(f"{error}; remove {row} and rerun the study") from error
        raise


def _empty(folder: Path) -> None:
    """Empty a folder, except for the files that name the study's holder."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != HOLDER and not path.name.startswith("."):
            path.unlink()
