"""One process runs a study at a time, also where several machines share its folder or URI."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from perpeft_ray.data.places import read_file, remove_file, subfolder, write_file
from perpeft_ray.errors import InputError

LOCK = ".lock"
HOLDER = "owner.json"
BEAT_S = 10.0
"""Time between two signs of life of a holder: it writes its file, with the time."""
SILENCE_S = 60.0
"""A holder that gives no sign of life for so long is taken to be dead."""
SETTLE_S = 1.0
"""At a URI, for the file of one that starts at the same moment to arrive: the later one stays."""


@dataclass(frozen=True)
class Holder:
    """The process that runs a study."""

    host: str
    pid: int
    since: str
    """UTC, ISO 8601."""
    machine: str
    """Told apart from others of the same host name, as containers have it; the same for
    containers of one machine."""
    beat: str = ""
    """When it gave its last sign of life."""


@contextmanager
def leased(place: Path | str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a study's folder, which is made where it is missing, or URI for the time of the block.

    The operating system frees the lock of a process however that ends, so in a folder a dead holder
    on this machine is in nobody's way; at a URI, one of this container. Not every shared file
    system carries locks from one machine to another: who died elsewhere is given up after
    `SILENCE_S` without a sign of life, and `say` is told of the wait.

    Raises InputError, with holder and host, while another process runs the study, and where the
    folder cannot be written; OSError and ValueError as of a URI that cannot be reached.
    """
    file = subfolder(place, HOLDER)
    with ExitStack() as stack:
        if isinstance(place, Path):
            stack.enter_context(_locked(place))
        left = _read(file)
        if left is not None and not _is_gone(left, locked=isinstance(place, Path)):
            _wait_for_silence(place, left, say)
        me = _myself()
        _write(file, me)
        if not isinstance(place, Path):
            time.sleep(SETTLE_S)
            now = _read(file)
            if now is not None and replace(now, beat="") != me:
                raise InputError(_in_use(place, now))
        stack.callback(remove_file, file)
        with _beating(file, me):
            yield


def others_hold(folder: Path) -> bool:
    """Whether a process other than this one runs a study in the folder or just below it."""
    found = [_read(file) for file in (folder / HOLDER, *folder.glob(f"*/{HOLDER}"))]
    me = (os.getpid(), _machine())
    return any(holder is not None and (holder.pid, holder.machine) != me for holder in found)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(_in_use(folder, _read(folder / HOLDER))) from None
    except OSError as error:
        raise InputError(
            f"`storage` must be a folder that can be written, but {folder}: {error.strerror}"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _myself() -> Holder:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Holder(platform.node(), os.getpid(), now, _machine())


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")  # of the kernel whose locks we see
    return boot.read_text().strip() if boot.exists() else platform.node()


def _in_use(place: Path | str, holder: Holder | None) -> str:
    by = "another does"
    if holder is not None:
        by = f"process {holder.pid} on {holder.host} has run it since {holder.since}"
    return f"`study` must be run by one process at a time, but {by}: {place}"


def _is_gone(holder: Holder, *, locked: bool) -> bool:
    """Whether it was a process of this machine that is no more; `locked`: we have its lock."""
    here = _myself()
    if holder.machine != here.machine:
        return False
    if locked:
        return True
    if holder.host != here.host:  # another container, whose processes we do not see
        return False
    try:
        os.kill(holder.pid, 0)  # signal 0 only asks
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's
        return False
    return holder.pid == here.pid


def _wait_for_silence(place: Path | str, left: Holder, say: Callable[[str], None]) -> None:
    """Return once `left` cannot be running the study; raise InputError if somebody is."""
    say(
        f"process {left.pid} on {left.host} left this study unfinished; making sure for "
        f"{SILENCE_S:.0f} s that it is gone"
    )
    deadline = time.monotonic() + SILENCE_S
    while time.monotonic() < deadline:
        time.sleep(min(BEAT_S, SILENCE_S))
        if (now := _read(subfolder(place, HOLDER))) not in (left, None):
            raise InputError(_in_use(place, now))


def _read(file: Path | str) -> Holder | None:
    try:
        content = read_file(file)
        return None if content is None else Holder(**json.loads(content))
    except json.JSONDecodeError:  # cut short when the machine went down
        return None


def _write(file: Path | str, holder: Holder) -> None:
    fields = {**asdict(holder), "beat": datetime.now(UTC).isoformat()}
    write_file(file, (json.dumps(fields) + "\n").encode())


@contextmanager
def _beating(file: Path | str, me: Holder) -> Iterator[None]:
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            try:
                _write(file, me)
            except OSError:
                continue  # one sign of life less; the next may be seen

    thread = threading.Thread(target=beat, name="study-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
