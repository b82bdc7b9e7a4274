"""Content hashes of what results depend on besides settings: tables, images, encoder."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from perpeft_ray.data.interactions import Dataset
from perpeft_ray.encoder.source import encoder_fingerprint


@dataclass(frozen=True)
class Fingerprints:
    """Content hashes in hexadecimal; equal ones mean the same data and encoder."""

    tables: str
    """Of interactions and items, values and order."""
    images: str
    """Of the bytes of the items' image files."""
    encoder: str
    """Of the encoder's configuration and weights."""

    def changes(self, later: Fingerprints, dataset: str, encoder: str) -> str:
        """What differs in `later`, in words ("the images of parquet:shop"); "" if nothing does.

        `dataset` and `encoder`: their names in the message.
        """
        names = {
            "tables": f"the tables of {dataset}",
            "images": f"the images of {dataset}",
            "encoder": f"the encoder {encoder}",
        }
        old, new = asdict(self), asdict(later)
        return " and ".join(names[part] for part in old if old[part] != new[part])


def fingerprints(dataset: Dataset, encoder: str) -> Fingerprints:
    """The fingerprints of an open data set and an encoder, named as after `--encoder`.

    Raises InputError if the encoder's weights are missing.
    """
    return Fingerprints(
        tables=dataset.tables_fingerprint,
        images=dataset.images_fingerprint,
        encoder=encoder_fingerprint(encoder),
    )
