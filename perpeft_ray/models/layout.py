"""Files of an exported model, and its `config.json`.

DIR/
  README.md                 the model card
  config.json               `ExportConfig`
  items.json                item ids and titles, in the order of the embeddings' rows 1..I
  sasrec.safetensors        SASRec of the selected epoch, id embedding included
  groups/<g>/               a group's module and its item embeddings
    adapter/                a standard peft folder (IISAN: its own name)
    projector.safetensors
    embeddings.safetensors  [I+1, D], row 0 is padding
  grouping/                 the stage-1 model that users are grouped by, if there are groups
    centroids.safetensors   [G, D]
    sasrec.safetensors, adapter/, projector.safetensors, embeddings.safetensors
  encoder/                  the foundation model, with --with-encoder
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from perpeft_ray.config import TrialConfig
from perpeft_ray.data.interactions import check_inside
from perpeft_ray.encoder.source import parse_encoder
from perpeft_ray.errors import InputError

FORMAT = 1
"""Changes whenever an older program cannot read the folder."""

CONFIG = "config.json"
CARD = "README.md"
ITEMS = "items.json"
SASREC = "sasrec.safetensors"
PROJECTOR = "projector.safetensors"
EMBEDDINGS = "embeddings.safetensors"
CENTROIDS = "centroids.safetensors"
GROUPING = "grouping"
ENCODER = "encoder"
_INSIDE = "./"
"""Prefix of the path of an encoder inside the exported folder."""

_ENCODER_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "1_Pooling/*")
"""Files to copy of a foundation model: configuration, tokenizer, weights, pooling."""

Precision = Literal["float32", "float16"]


@dataclass(frozen=True)
class ExportConfig:
    """Content and origin of an exported model."""

    format: int
    version: str
    """Version of perpeft-ray."""
    study: str
    trial_id: str
    trial: TrialConfig
    encoder: str
    """As in `parse_encoder`; a path that begins with `./` lies inside the folder."""
    encoder_fingerprint: str
    """Hash of the encoder's files; new items need the same encoder."""
    data_fingerprint: str
    """Hash of interactions, items and images; 32 hexadecimal digits."""
    users: int
    items: int
    interactions: int
    embeddings: Precision

    @property
    def has_encoder(self) -> bool:
        """Whether the folder has the foundation model."""
        return _INSIDE + ENCODER in self.encoder

    @property
    def groups(self) -> int:
        """Number of modules: of groups, or one for all users."""
        return self.trial.groups or 1


def group_folder(folder: Path, group: int) -> Path:
    """The folder of a group's module."""
    return folder / "groups" / str(group)


def encoder_inside(name: str) -> str:
    """The name of an encoder as `copy_encoder` puts it into a folder, relative to that folder."""
    kind = next((kind for kind in ("text:", "pair:") if name.startswith(kind)), "")
    parts = ["/text", "/image"] if kind == "pair:" else [""]
    return kind + ",".join(_INSIDE + ENCODER + part for part in parts)


def located_encoder(name: str, folder: Path) -> str:
    """An encoder's name with paths inside an exported folder made absolute.

    Raises InputError for a path that leaves the folder.
    """
    kind, colon, paths = name.rpartition(":")
    located = []
    for path in paths.split(","):
        if path.startswith(_INSIDE):
            check_inside(f"`encoder` of {folder / CONFIG} must stay inside", folder, path)
            path = str((folder / path).resolve())
        located.append(path)
    return kind + colon + ",".join(located)


def copy_encoder(name: str, folder: Path) -> None:
    """Copy a foundation model, or a pair's two models, to where `encoder_inside` says."""
    source = parse_encoder(name)
    paths = encoder_inside(name).rpartition(":")[2].split(",")
    originals = [source.path, source.image_path] if len(paths) == 2 else [source.path]
    for original, path in zip(originals, paths, strict=True):
        assert original is not None
        local = Path(original)
        if not local.is_dir():
            from huggingface_hub import snapshot_download

            local = Path(snapshot_download(original, allow_patterns=list(_ENCODER_FILES)))
        for file in (file for pattern in _ENCODER_FILES for file in local.glob(pattern)):
            copied = folder / path / file.relative_to(local)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copied)


def write_config(config: ExportConfig, folder: Path) -> None:
    """Write `config.json`."""
    text = json.dumps(dataclasses.asdict(config), indent=2, allow_nan=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def read_config(folder: Path) -> ExportConfig:
    """Read `config.json`. Raises InputError if the folder is not a model of this format."""
    file = folder / CONFIG
    if not file.is_file():
        raise InputError(f"an exported model must have {CONFIG}, but {folder} has none")
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} must be JSON, but is not: {error}") from error
    fields = {field.name: str(field.type) for field in dataclasses.fields(ExportConfig)}
    of_trial = {field.name for field in dataclasses.fields(TrialConfig)}
    if (
        not isinstance(values, dict)
        or values.get("format") != FORMAT
        or values.keys() != fields.keys()
    ):
        raise InputError(f"{file} must be an exported model's of format {FORMAT}, but is not")
    for name, kind in fields.items():
        of_kind = {"int": int, "str": str}.get(kind, object)
        if not isinstance(values[name], of_kind) or isinstance(values[name], bool):
            raise InputError(f"`{name}` of {file} must be {kind}, but is {values[name]!r}")
    if not isinstance(values["trial"], dict) or values["trial"].keys() != of_trial:
        raise InputError(
            f"{folder} must be of a version with the settings of this one, but is of "
            f"{values['version']}; export it again"
        )
    return ExportConfig(**{**values, "trial": TrialConfig(**values["trial"])})


def read_items(folder: Path, count: int) -> tuple[list[str], list[str | None]]:
    """Ids and titles of `items.json`. Raises ValueError unless they are of `count` items."""
    items = json.loads((folder / ITEMS).read_text(encoding="utf-8"))
    lists = [
        items.get(name) if isinstance(items, dict) else None for name in ("item_ids", "titles")
    ]
    ids, titles = (values if isinstance(values, list) else [] for values in lists)
    if not len(set(map(str, ids))) == len(ids) == len(titles) == count:
        raise ValueError(f"{ITEMS} must have ids and titles of {count} items, none twice")
    return ids, titles
