"""What may stand after `--encoder`, and where its weights lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perpeft_ray.errors import InputError

TOYSHOP_CLIP = Path(__file__).parent / "toyshop_clip"


@dataclass(frozen=True)
class EncoderSource:
    """Where an encoder comes from and what it is, parsed from its name on the command line."""

    kind: Literal["dual", "text", "pair"]
    path: str
    """A local folder or a hub name, as `from_pretrained` takes it; of a pair, that of titles."""
    image_path: str | None
    """The same of what encodes images; None for text alone."""


def parse_encoder(name: str) -> EncoderSource:
    """What an encoder's name means.

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


def _located(name: str, path: str) -> str:
    """A hub name as it is, a local folder resolved."""
    if not path:
        raise InputError(f"`encoder` must name a folder or a hub model, but is {name!r}")
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).exists()
    if not looks_local:
        return path
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        raise InputError(f"`encoder` must be a folder with a config.json, but is {path}")
    return str(folder.resolve())
