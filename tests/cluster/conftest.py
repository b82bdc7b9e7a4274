"""Ray nodes as a person starts them, with `ray start`: own ports, home, token and temporary folder.

Every process is ended by its id: another Ray may run on this machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import pytest

from tests.small_shop import write_small_shop

ROOT = Path(__file__).parents[2]
READY_S = 120.0
ATTEMPTS = 3


class Nodes:
    """A head node, and workers that join it; all in one folder that is removed at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.dashboard_port = free_port(), free_port()
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = own | {
            "HOME": str(folder / "home"),
            "PATH": f"{Path(sys.executable).parent}:{own['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }
        self._processes: list[subprocess.Popen] = []
        (folder / "home").mkdir()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    def run(
        self, *command: str, timeout: float = 600, **environment: str
    ) -> subprocess.CompletedProcess:
        """A command to its end, in the clone, as the person who started the nodes."""
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )

    def start_head(self, cpus: int) -> None:
        made = self.run("ray", "get-auth-token", "--generate")
        assert made.returncode == 0, made.stderr
        # Ray gives a node 30 s, whatever the machine is busy with.
        for _ in range(ATTEMPTS):
            head = self._start(
                "--head",
                f"--port={self.port}",
                f"--dashboard-port={self.dashboard_port}",
                "--dashboard-host=127.0.0.1",
                f"--ray-client-server-port={free_port()}",
                f"--temp-dir={self.folder / 'ray'}",
                f"--num-cpus={cpus}",
            )
            if self._is_up(head):
                return
            self.stop(head)
        pytest.fail(f"no Ray after {ATTEMPTS} attempts: {self.logs()}")

    def start_worker(
        self,
        cpus: int,
        gpus: int = 0,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen:
        """A node that says it has so much; `prefix` is a command that runs the one after it."""
        return self._start(
            f"--address={self.address}",
            f"--num-cpus={cpus}",
            f"--num-gpus={gpus}",
            prefix=prefix,
            environment=environment,
        )

    def stop(self, process: subprocess.Popen) -> None:
        """End a node: the process that was started here and its descendants, by their ids."""
        self._processes.remove(process)
        if process.poll() is not None:
            return
        tree = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        for left in [*tree, *([psutil.Process(process.pid)] if process.poll() is None else [])]:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        psutil.wait_procs(tree, timeout=30)
        process.wait(30)

    def stop_all(self) -> None:
        for process in reversed(self._processes[:]):
            self.stop(process)

    def _start(
        self,
        *arguments: str,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen:
        command = [
            *prefix,
            "ray",
            "start",
            "--block",
            "--node-ip-address=127.0.0.1",
            "--object-store-memory=200000000",
            f"--dashboard-agent-listen-port={free_port()}",
            f"--metrics-export-port={free_port()}",
            *arguments,
        ]
        with (self.folder / f"node-{len(self._processes)}.log").open("w") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._processes.append(process)
        return process

    def _is_up(self, head: subprocess.Popen) -> bool:
        """Wait until a head node is up or has ended."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and head.poll() is None:
            if "Ray runtime started" in self.logs():
                return True
            time.sleep(0.5)
        return False

    def logs(self) -> str:
        return "\n".join(file.read_text() for file in sorted(self.folder.glob("node-*.log")))


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture(scope="package")
def nodes():
    """A head node with two CPUs."""
    # A short path: the names of Unix sockets have at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="pr-", dir="/tmp"))
    started = Nodes(folder)
    try:
        started.start_head(cpus=2)
        yield started
    finally:
        started.stop_all()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def small_shop(tmp_path):
    """A data set in the folder format."""
    return write_small_shop(tmp_path / "shop")
