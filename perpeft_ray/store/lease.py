"""Who runs a study: one process at a time, also where several machines share its folder."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from perpeft_ray.errors import InputError

LOCK = ".lock"
OWNER = "owner.json"
BEAT_S = 5.0
"""Time between two signs of life of an owner: it touches its file."""
SILENCE_S = 60.0
"""An owner on another machine that gives no sign of life for so long is taken to be dead."""


@dataclass(frozen=True)
class Owner:
    """The process that runs a study."""

    host: str
    pid: int
    since: str
    """UTC, ISO 8601."""
    machine: str
    """Told apart from others of the same host name, as containers have it; the same for
    containers of one machine."""


@contextmanager
def owned(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Own a study's folder, which is made where it is missing, for the time of the block.

    The operating system frees the lock of a process however that ends, so a dead owner on this
    machine is in nobody's way. Not every shared file system carries locks from one machine to
    another: one that died elsewhere is given up after `SILENCE_S` without a sign of life, and
    `say` is told of the wait.

    Raises InputError, with owner and host, while another process runs the study, and where the
    folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise InputError(in_use(folder, _read(folder / OWNER))) from None
    except OSError as error:
        raise InputError(
            f"`storage` must be a folder that can be written, but {folder}: {error.strerror}"
        ) from error
    file = folder / OWNER
    try:
        _wait_for_silence(folder, say)
        temporary = folder / f".{OWNER}"
        temporary.write_text(json.dumps(asdict(myself())) + "\n", encoding="utf-8")
        temporary.replace(file)
        try:
            with _beating(file):
                yield
        finally:
            file.unlink(missing_ok=True)
    finally:
        lock.release()


def others_own(folder: Path) -> bool:
    """Whether a process other than this one runs a study in the folder or just below it."""
    owners = [_read(file) for file in (folder / OWNER, *folder.glob(f"*/{OWNER}"))]
    me = (os.getpid(), _machine())
    return any(owner is not None and (owner.pid, owner.machine) != me for owner in owners)


def myself() -> Owner:
    """This process, as an owner from now on."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Owner(platform.node(), os.getpid(), now, _machine())


def in_use(folder: Path | str, owner: Owner | None) -> str:
    """What to tell where another process runs the study."""
    by = "another does"
    if owner is not None:
        by = f"process {owner.pid} on {owner.host} has run it since {owner.since}"
    return f"`study` must be run by one process at a time, but {by}: {folder}"


def _wait_for_silence(folder: Path, say: Callable[[str], None]) -> None:
    """Return once nobody else can be running the study; raise InputError if somebody is."""
    left = _read(folder / OWNER)
    # We hold the lock: an owner on this machine is dead.
    if left is None or left.machine == _machine():
        return
    say(
        f"process {left.pid} on {left.host} left this study unfinished; making sure for "
        f"{SILENCE_S:.0f} s that it is gone"
    )
    before = _last_beat(folder / OWNER)
    deadline = time.monotonic() + SILENCE_S
    while time.monotonic() < deadline:
        time.sleep(min(BEAT_S, SILENCE_S))
        if _last_beat(folder / OWNER) not in (before, None):
            raise InputError(in_use(folder, _read(folder / OWNER)))


def _read(file: Path) -> Owner | None:
    try:
        return Owner(**json.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):  # not there, or cut short when the machine went down
        return None


def _last_beat(file: Path) -> int | None:
    try:
        with file.open("rb") as opened:  # opened, since network file systems then look again
            return os.fstat(opened.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


@contextmanager
def _beating(file: Path) -> Iterator[None]:
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            try:
                os.utime(file)
            except OSError:
                continue  # one sign of life less; the next may be seen

    thread = threading.Thread(target=beat, name="study-owner", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")  # of the kernel whose locks we see
    return boot.read_text().strip() if boot.exists() else platform.node()
