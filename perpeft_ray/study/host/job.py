"""A submitted Ray job: its working directory is a copy that Ray deletes afterwards."""

from __future__ import annotations

import json
import os
from pathlib import Path

from perpeft_ray.data.places import is_uri
from perpeft_ray.errors import InputError

_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray's job supervisor, under exactly this name, and by nothing else."""
_SUBMISSION_ID = "job_submission_id"


def submission_id() -> str | None:
    """The id of the Ray job that runs this process; None outside `ray job submit`."""
    config = os.environ.get(_JOB_CONFIG)
    if config is None:
        return None
    metadata: dict[str, str] = json.loads(config)["metadata"]
    return metadata.get(_SUBMISSION_ID)


def check_storage_outlives_job(storage: str) -> None:
    """Raise InputError for a relative `storage` in a Ray job: results would vanish with the job."""
    job = submission_id()
    if job is not None and not is_uri(storage) and not Path(storage).is_absolute():
        raise InputError(
            "`storage` must be an absolute path or a URI in a Ray job (the working directory of "
            f"job {job} is a copy that Ray deletes), but is {storage!r}"
        )
