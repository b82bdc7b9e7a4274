"""Ray during a study: our own instance, or the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import ray
from filelock import FileLock, Timeout

from perpeft_ray.config import StudyConfig
from perpeft_ray.errors import InputError, StudyStoppedError, is_full_disk
from perpeft_ray.study.room import check_resources, wait_for_room, with_gpus

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the old output engine is the one that verbose=0 silences
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # rows are ours; no CSV, JSON and TensorBoard files
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # epochs without a validation have no objective
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the study, not only Tune's current call
    # For Ray's C++ parts, which log errors that Ray then handles to the terminal, in red. ray.init
    # applies the level to Ray's servers too, so their log files lack these errors. Set the variable
    # to look for a fault in Ray.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Ray warns on the terminal of four times as many processes as it starts at once: by default
    # eight on two CPUs, which is what a study of two trials at a time has.
    "RAY_worker_maximum_startup_concurrency": str(max(8, os.cpu_count() or 1)),
    # A Ray job may give variables that this process sends too. They are the same: it has the job's.
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of encoders stay valid in trials
    # Trials keep a step's memory for the next one: returning it to the system and asking for it
    # again took a fifth of their time (sys 20 % -> 4 %, see results/findings/cpu_speed.md).
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}
_SENT = ("PERPEFT_FAST",)
"""Variables of the user that trials read, also on a joined cluster."""
ADDRESS_WAIT_S = 10.0
"""Seconds for a joined cluster to accept a connection."""
_LOGGERS = ("ray.tune", "ray.train", "optuna", "perpeft_ray")

_ROOM = 103 - len("/ray/session_2000-01-01_00-00-00_000000_0000000/sockets/plasma_store")
"""Most bytes of Ray's folder: macOS allows a socket's path 103, Linux 107."""
_PREFIX = "perpeft-"
_LOCK = ".in-use"
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


@contextmanager
def ray_for(study: StudyConfig, log_file: Path) -> Iterator[StudyConfig]:
    """Ray, started or joined, with room for the study's trials; ends only what it started.

    Yields the study with `gpus_per_worker` set (`with_gpus`). Logs of Ray, Optuna and failed trials
    go to `log_file`, whose folder must exist.

    Raises InputError if no Ray answers or our own has too few CPUs for a trial, StudyStoppedError
    if Ray does not start or a cluster has no room for a trial within `start_timeout_s`.
    """
    with ray_runtime(log_file):
        study = with_gpus(study)
        if os.environ.get("RAY_ADDRESS"):  # a cluster may grow, and others may hold its processors
            wait_for_room(study)
        else:
            check_resources(study)
        with _logging_to(log_file):
            yield study


@contextmanager
def ray_runtime(log_file: Path | None = None) -> Iterator[None]:
    """Ray, started or joined as for a study; ends only what it started.

    SIGTERM keeps its handler. Output of Ray's C++ parts at the start goes to `log_file`. Raises
    InputError if `RAY_ADDRESS` does not answer.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield
        return
    with ray_folder():
        handler = signal.getsignal(signal.SIGTERM)
        with _stderr_to(log_file or Path(os.devnull)):
            _init()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's own aborts the process
        try:
            yield
        finally:
            ray.shutdown()


def _init() -> None:
    if address := os.environ.get("RAY_ADDRESS"):
        _check_answers(address)
        # Processes of a cluster do not have this process's environment.
        sent = [name for name in (*_ENVIRONMENT, *_SENT) if name in os.environ]
        ray.init(
            runtime_env={"env_vars": {name: os.environ[name] for name in sent}},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        return
    # "local": never a cluster that happens to run on this machine.
    try:
        ray.init(
            address="local",
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # Ray raises this very class
        if "timed out during startup" not in str(error):
            raise
        ray.shutdown()
        raise StudyStoppedError(
            "Ray did not start within its 30 s, so this machine is too busy; run the same command "
            "again"
        ) from error
    hide_token()


def quiet_data() -> None:
    """Let Ray Data print neither progress nor warnings in this process."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # the other writes to Ray's own log folder
            handler.setLevel(logging.ERROR)


@contextmanager
def _stderr_to(file: Path) -> Iterator[None]:
    """The process's own standard error, below Python's: C++ writes there."""
    sys.stderr.flush()
    kept = os.dup(2)
    with file.open("ab") as opened:
        os.dup2(opened.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def hide_token() -> None:
    """Make the token that Ray 2.60 writes readable by its owner only."""
    file = Path.home() / ".ray" / "auth_token"
    if file.exists() and file.stat().st_mode & 0o077:
        file.chmod(0o600)


def _check_answers(address: str) -> None:
    """Raise InputError at once; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if address in ("auto", "local") or "://" in address:
        return
    try:
        with socket.create_connection((host, int(port)), timeout=ADDRESS_WAIT_S):
            pass
    except (OSError, ValueError) as error:
        raise InputError(
            f"`RAY_ADDRESS` must be HOST:PORT of a running Ray, but {address} does not answer: "
            f"{error}"
        ) from error


class _LogFile(logging.FileHandler):
    """A log that drops lines silently on a full disk: the study itself reports that and ends."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Called while the error of a failed write is handled."""
        error = sys.exception()
        if error is None or not is_full_disk(error):
            super().handleError(record)


@contextmanager
def _logging_to(file: Path) -> Iterator[None]:
    handler = _LogFile(file, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.handlers[:], logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers[:] = [handler]
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers[:], logger.propagate = handlers, propagate
        handler.close()


@contextmanager
def ray_folder() -> Iterator[None]:
    """Give Ray a new folder for its sockets and logs, which is removed after the block.

    It is below `TMPDIR`, or below `/tmp` if that is too long. Also removes leftovers of killed
    processes. With `RAY_TMPDIR` set, makes and removes nothing.

    Raises InputError if `RAY_TMPDIR` is too long, or no short folder is writable.
    """
    given = os.environ.get("RAY_TMPDIR")
    if given is not None and not _is_short(given):
        raise InputError(
            f"`RAY_TMPDIR` must be at most {_ROOM} bytes long for Ray's sockets, but is {given}"
        )
    with nullcontext(given) if given is not None else scratch_folder(_PREFIX, _base()) as folder:
        changed = {"RAY_TMPDIR": str(folder)}
        if not _is_short(os.environ.get("TMPDIR", "")):  # the dashboard has sockets there
            changed["TMPDIR"] = str(folder)
        before = {name: os.environ.get(name) for name in changed}
        os.environ.update(changed)
        try:
            yield
        finally:
            for name, value in before.items():
                del os.environ[name]
                if value is not None:
                    os.environ[name] = value


@contextmanager
def scratch_folder(prefix: str, base: str | None = None) -> Iterator[Path]:
    """Yield a new folder, below `TMPDIR` by default, which is removed after the block.

    Also removes folders of this kind left by killed processes, whose lock is free.
    """
    base = base or tempfile.gettempdir()
    for lock in Path(base).glob(f"{prefix}*/{_LOCK}"):
        with suppress(Timeout, OSError), FileLock(lock, timeout=0):  # in use, or another user's
            shutil.rmtree(lock.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
    try:
        with FileLock(folder / _LOCK):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _base() -> str:
    ending = f"/{_PREFIX}{'x' * 8}"
    for folder in (tempfile.gettempdir(), *_SHORT_FOLDERS):
        if _is_short(folder + ending) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise InputError(
        f"`TMPDIR` must be at most {_ROOM - len(ending)} bytes long for Ray's sockets, but is "
        f"{tempfile.gettempdir()}, and none of {', '.join(_SHORT_FOLDERS)} can be written"
    )


def _is_short(folder: str) -> bool:
    return len(os.fsencode(folder)) <= _ROOM
