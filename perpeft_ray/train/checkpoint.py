"""Checkpoints of an unfinished stage, after every epoch, written and read by worker 0.

    <folder>/<key>/
        grouping.safetensors   users' groups, once
        stage.safetensors      the stage after its latest epoch, with its best epoch (`snapshot.py`)

Nothing depends on the number of workers, so a trial may resume with another number. These are our
own files and not Ray Train's checkpoints: trials outside Ray and a stage 1 shared by many trials
need them too, and Ray Train's workers take many trials.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pyarrow import fs

from perpeft_ray.data.places import remove_folder, resolve, subfolder
from perpeft_ray.train.collective import Collective
from perpeft_ray.train.grouping import Grouping
from perpeft_ray.train.snapshot import (
    Snapshot,
    TrainProgress,
    read_grouping,
    read_snapshot,
    write_grouping,
    write_snapshot,
)
from perpeft_ray.train.state import (
    TrainState,
    load_optimizers,
    load_weights,
    optimizer_tensors,
    weights,
)


class Checkpoints:
    """The checkpoints of one stage. All workers save, restore and remove in the same order."""

    def __init__(self, folder: Path | str, key: str, collective: Collective) -> None:
        """Name the checkpoints; reads and writes nothing yet.

        Args:
            folder: a local path, or a URI of pyarrow (`s3://…`, `gs://…`, `file:///…`) or fsspec
                (`fsspec+memory://…`); worker 0 must see it.
            key: hash of all that determines the stage's result; other keys' files are not read.
        """
        self._folder = folder
        self._own = subfolder(folder, key)
        self._stage = subfolder(self._own, "stage.safetensors")
        self._grouping = subfolder(self._own, "grouping.safetensors")
        self._collective = collective

    def save(self, state: TrainState, progress: TrainProgress) -> None:
        """Write the state after the last epoch of `progress`; replaces the previous checkpoint.

        Raises OSError on worker 0 if writing fails, for example on a full disk.
        """
        if self._collective.rank == 0:
            snapshot = Snapshot(progress, weights(state), optimizer_tensors(state))
            write_snapshot(snapshot, self._stage)

    def restore(self, state: TrainState, start: TrainProgress) -> TrainProgress:
        """Load the latest checkpoint into `state`, in place, and return the stage's progress.

        Without a checkpoint, returns `start` and leaves `state` unchanged.
        """
        found = self._collective.share(lambda: read_snapshot(self._stage))
        if found is None:
            return start
        load_weights(state, found.weights)
        load_optimizers(state, found.optimizers)
        return found.progress

    def save_grouping(self, grouping: Grouping, seconds: float) -> None:
        """Write the users' groups, which took `seconds`. Only worker 0 calls this."""
        write_grouping(grouping, seconds, self._grouping)

    def grouping(self) -> tuple[Grouping, float] | None:
        """The arguments of `save_grouping`; None if it was not called. Only worker 0 calls this."""
        return read_grouping(self._grouping)

    def remove(self) -> None:
        """Remove the stage's checkpoints, and the folder if it is then empty."""
        if self._collective.rank == 0:
            remove_folder(self._own)
            files, path = resolve(self._folder)
            with suppress(FileNotFoundError):
                if not files.get_file_info(fs.FileSelector(path)):
                    files.delete_dir(path)
