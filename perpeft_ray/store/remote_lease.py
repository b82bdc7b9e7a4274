"""Who runs a study that is kept at a URI, where no lock tells: a file, written again and again."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime

from perpeft_ray.data.places import read_file, remove_file, subfolder, write_file
from perpeft_ray.errors import InputError
from perpeft_ray.store.lease import OWNER, Owner, in_use, myself

BEAT_S = 10.0
"""Time between two signs of life of an owner: its file, with the time."""
SILENCE_S = 60.0
"""An owner that gives no sign of life for so long is taken to be dead."""
SETTLE_S = 1.0
"""For the file of another that starts at the same moment to arrive: the later one stays."""

Sign = tuple[Owner, str]
"""An owner, and when it gave its last sign of life."""


@contextmanager
def owned_at(uri: str, say: Callable[[str], None]) -> Iterator[None]:
    """Own the study that is kept at a URI for the time of the block.

    An owner that ended without a word is given up after `SILENCE_S`, at once where it was a
    process of this machine that is gone; `say` is told of the wait. Raises InputError while another
    process runs the study.
    """
    file = str(subfolder(uri, OWNER))
    _wait_for_silence(file, uri, say)
    me = myself()
    _write(file, me)
    time.sleep(SETTLE_S)
    sign = _read(file)
    if sign is not None and sign[0] != me:
        raise InputError(in_use(uri, sign[0]))
    try:
        with _beating(file, me):
            yield
    finally:
        remove_file(file)


def _wait_for_silence(file: str, uri: str, say: Callable[[str], None]) -> None:
    left = _read(file)
    if left is None or _is_gone(left[0]):
        return
    say(
        f"process {left[0].pid} on {left[0].host} left this study unfinished; making sure for "
        f"{SILENCE_S:.0f} s that it is gone"
    )
    deadline = time.monotonic() + SILENCE_S
    while time.monotonic() < deadline:
        time.sleep(min(BEAT_S, SILENCE_S))
        if (now := _read(file)) not in (left, None):
            raise InputError(in_use(uri, now[0] if now else None))


def _is_gone(owner: Owner) -> bool:
    """Whether it was a process of this machine, and of this container, that is no more."""
    here = myself()
    if (owner.host, owner.machine) != (here.host, here.machine):
        return False
    try:
        os.kill(owner.pid, 0)  # signal 0 only asks
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's
        return False
    return owner.pid == here.pid


def _read(file: str) -> Sign | None:
    content = read_file(file)
    if content is None:
        return None
    fields = json.loads(content)
    beat = fields.pop("beat")
    return Owner(**fields), beat


def _write(file: str, owner: Owner) -> None:
    beat = datetime.now(UTC).isoformat()
    write_file(file, (json.dumps({**asdict(owner), "beat": beat}) + "\n").encode())


@contextmanager
def _beating(file: str, me: Owner) -> Iterator[None]:
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            try:
                _write(file, me)
            except OSError:
                continue  # one sign of life less; the next may be seen

    thread = threading.Thread(target=beat, name="study-remote-owner", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
