"""An encoder of the hub where no hub can be reached."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest
from huggingface_hub import constants

from perpeft_ray.encoder import source
from perpeft_ray.encoder.preprocess import FoundationPreprocessor
from perpeft_ray.encoder.source import encoder_fingerprint
from perpeft_ray.errors import InputError

MISSING = "nobody/has-this-model"


@pytest.fixture(autouse=True)
def _online(monkeypatch, tmp_path_factory):
    """As on a user's machine; tests are offline else."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # so that it is what it was afterwards
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
    source._use_cache_without_network.cache_clear()


@pytest.fixture
def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def silent_server():
    """It takes connections and never answers, as a proxy without a way out does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:  # closed
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for connection in taken:
            connection.close()


@pytest.mark.parametrize(
    ("name", "place"),
    [
        (MISSING, "silent_server"),
        *((f"{kind}{MISSING}", "closed_port") for kind in ("", "text:", f"pair:{MISSING},")),
    ],
)
def test_error_comes_within_ten_seconds(monkeypatch, request, place, name):
    monkeypatch.setattr(constants, "ENDPOINT", request.getfixturevalue(place))
    monkeypatch.setattr(source, "HUB_WAIT_S", 1.0 if place == "silent_server" else 6.0)
    FoundationPreprocessor("toyshop-clip")  # what is imported late
    began = time.monotonic()
    with pytest.raises(InputError, match=r"`encoder`.*nobody/has-this-model"):
        FoundationPreprocessor(name)
    with pytest.raises(InputError, match=r"`encoder`.*nobody/has-this-model"):
        encoder_fingerprint(name)
    assert time.monotonic() - began < 10
    assert os.environ["HF_HUB_OFFLINE"] == "1"  # of the processes of trials


def test_wait_for_the_hub_is_short():
    assert source.HUB_WAIT_S <= 8
