"""What a study's results depend on besides its settings: tables, images and encoder, by content."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from perpeft_ray.data.interactions import Dataset
from perpeft_ray.encoder.source import encoder_fingerprint


@dataclass(frozen=True)
class Fingerprints:
    """Content hashes in hexadecimal; two equal ones mean the same data and the same encoder."""

    tables: str
    """Of interactions and items, values and order."""
    images: str
    """Of the bytes of the items' image files."""
    encoder: str
    """Of the encoder's configuration and weights."""

    def changes(self, later: Fingerprints, dataset: str, encoder: str) -> str:
        """What differs in `later`, in words ("the images of parquet:shop"); "" where nothing does.

        `dataset` and `encoder`: what the message calls them.
        """
        names = {
            "tables": f"the tables of {dataset}",
            "images": f"the images of {dataset}",
            "encoder": f"the encoder {encoder}",
        }
        old, new = asdict(self), asdict(later)
        return " and ".join(names[part] for part in old if old[part] != new[part])


def fingerprints(dataset: Dataset, encoder: str) -> Fingerprints:
    """The fingerprints of an open data set and an encoder, by name as after `--encoder`.

    Raises InputError for an encoder whose weights are not there.
    """
    return Fingerprints(
        tables=dataset.tables_fingerprint,
        images=dataset.images_fingerprint,
        encoder=encoder_fingerprint(encoder),
    )
