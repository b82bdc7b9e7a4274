"""Raw files in the published forms, and a web server that misbehaves as told."""

from __future__ import annotations

import io
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image


def jpeg(number: int) -> bytes:
    """A small JPEG, another for every number."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


@dataclass
class Web:
    """What a server on 127.0.0.1 answers."""

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    """Statuses of the first requests of a path; then its file."""
    cut: Counter[str] = field(default_factory=Counter)
    """How many times the body of a path breaks off in the middle."""
    requests: Counter[str] = field(default_factory=Counter)
    at_once: int = 0
    most_at_once: int = 0
    pause: float = 0.0


@pytest.fixture
def web():
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with lock:
                site.requests[self.path] += 1
                site.at_once += 1
                site.most_at_once = max(site.most_at_once, site.at_once)
                status = site.statuses[self.path].pop(0) if site.statuses.get(self.path) else 200
                cut = site.cut[self.path] > 0
                site.cut[self.path] -= cut
            threading.Event().wait(site.pause)
            body = site.files.get(self.path)
            if body is None:
                status = 404
            with lock:
                site.at_once -= 1
            self.send_response(status)
            payload = body if status == 200 and body is not None else b""
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload[: len(payload) // 2] if cut else payload)
            self.close_connection = self.close_connection or cut

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    site = Web(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
