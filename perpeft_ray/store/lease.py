"""Lets one process run a study at a time, also if machines share its folder or URI."""

from __future__ import annotations

import json
import logging
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
from perpeft_ray.errors import InputError, StudyStoppedError

log = logging.getLogger(__name__)

LOCK = ".lock"
HOLDER = "owner.json"
BEAT_S = 10.0
"""Seconds between signs of life: the holder writes its file with the time."""
SILENCE_S = 60.0
"""A holder without a sign of life for this many seconds counts as dead."""
SETTLE_S = 1.0
"""At a URI, seconds for a simultaneous starter's file to arrive; the later file wins."""


@dataclass(frozen=True)
class Holder:
    """The process that runs a study."""

    host: str
    pid: int
    since: str
    """UTC, ISO 8601."""
    machine: str
    """Distinguishes machines with equal host names, such as containers; the same for all
    containers of one machine."""
    beat: str = ""
    """Time of the last sign of life."""


class Lease:
    """A study's folder or URI, held by this process."""

    def __init__(self, place: Path | str) -> None:
        self.file = subfolder(place, HOLDER)
        self.lost = False
        """Whether the last sign of life met another holder's file, or none."""
        self._place = place
        self._me = _myself()

    def look(self) -> None:
        """Raise StudyStoppedError if this process no longer holds the study."""
        if self.lost:
            raise StudyStoppedError(
                f"another process has taken over the study in {self._place} after "
                f"{SILENCE_S:.0f} s without a sign of life from this one, or {HOLDER} was removed; "
                "rerun the same command to resume once no other process runs the study"
            )

    def is_ours(self) -> bool:
        """Whether the file names this process."""
        now = _read(self.file)
        return now is not None and replace(now, beat="") == self._me

    def beat(self) -> None:
        """Give a sign of life, unless the study is lost."""
        self.lost = not self.is_ours()
        if not self.lost:
            self.write()

    def write(self) -> None:
        """Write the file."""
        fields = {**asdict(self._me), "beat": datetime.now(UTC).isoformat()}
        write_file(self.file, (json.dumps(fields) + "\n").encode())

    def remove(self) -> None:
        """Remove the file if it is ours."""
        if self.is_ours():
            remove_file(self.file)


@contextmanager
def leased(place: Path | str, say: Callable[[str], None]) -> Iterator[Lease]:
    """Hold a study's folder (made if missing) or URI during the block.

    The operating system frees a process's lock however it ends, so a dead holder on this machine
    (at a URI: in this container) is replaced at once. Not every shared file system carries locks
    between machines: a holder that died elsewhere is replaced after `SILENCE_S` without a sign of
    life; `say` reports the wait.

    Raises InputError, with holder and host, while another process runs the study; OSError if the
    folder cannot be written, and like ValueError for a URI that cannot be reached.
    """
    lease = Lease(place)
    with ExitStack() as stack:
        if isinstance(place, Path):
            stack.enter_context(_locked(place))
        left = _read(lease.file)
        if left is not None and not _is_gone(left, locked=isinstance(place, Path)):
            _wait_for_silence(place, left, say)
        lease.write()
        if not isinstance(place, Path):
            time.sleep(SETTLE_S)
            if not lease.is_ours():
                raise InputError(_in_use(place, _read(lease.file)))
        stack.callback(lease.remove)
        with _beating(lease):
            yield lease


def others_hold(folder: Path) -> bool:
    """Whether another process runs a study in the folder or directly below it."""
    found = [_read(file) for file in (folder / HOLDER, *folder.glob(f"*/{HOLDER}"))]
    me = (os.getpid(), _machine())
    return any(holder is not None and (holder.pid, holder.machine) != me for holder in found)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / LOCK, timeout=0)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(_in_use(folder, _read(folder / HOLDER))) from None
    try:
        yield
    finally:
        lock.release()


def _myself() -> Holder:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Holder(platform.node(), os.getpid(), now, _machine())


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")  # of the kernel that manages our locks
    return boot.read_text().strip() if boot.exists() else platform.node()


def _in_use(place: Path | str, holder: Holder | None) -> str:
    by = "another does"
    if holder is not None:
        by = f"process {holder.pid} on {holder.host} has run it since {holder.since}"
    return f"`study` must be run by one process at a time, but {by}: {place}"


def _is_gone(holder: Holder, *, locked: bool) -> bool:
    """Whether it was a process of this machine that has ended; `locked`: we hold its lock."""
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
    """Return once `left` cannot be running the study; raise InputError if another process is."""
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
    except (json.JSONDecodeError, TypeError):  # truncated, or of another version
        return None


@contextmanager
def _beating(lease: Lease) -> Iterator[None]:
    ended = threading.Event()

    def beat() -> None:
        while not lease.lost and not ended.wait(BEAT_S):
            try:
                lease.beat()
            except Exception as error:  # noqa: BLE001 - stores of fsspec raise their own
                log.warning("no sign of life at %s: %s", lease.file, error)  # the next may arrive

    thread = threading.Thread(target=beat, name="study-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
