"""Bytes that came over the network, which a snapshot has beside the bytes of the image that they were."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyerofs.daemon.stats import snapshot
from pyerofs.export.file import BlobFile, open_blob
from tests.support.blobs import Rig
from tests.support.fakeregistry import LIMIT, FakeRegistry, stall
from tests.support.indexedlayers import image, stream
from tests.support.scene import until
from tests.support.statuses import record_of


@pytest.fixture
def rig(fake: FakeRegistry, tmp_path: Path) -> Rig:
    return Rig(fake, tmp_path)


@pytest.fixture
def blob(rig: Rig) -> Iterator[BlobFile]:
    with rig.open(rig.publish(300_000)[0]) as blob:
        yield blob


def fetches(blob: BlobFile, times: int = 1) -> dict[str, Any]:
    export = blob._export
    found: dict[str, Any] = snapshot([export] * times, record_of(export), time.monotonic())["fetches"]
    return found


def test_what_came_over_the_network(rig: Rig) -> None:
    """Of a layer that is compressed, less than what is made of it; several layers of an image count it once."""
    data = image(500)
    layer = stream(data, 1 << 16)
    assert len(layer.data) < len(data) * 2 / 3
    with rig.open(rig.push(layer)) as blob:
        assert blob.read() == data
        until(lambda: blob._export.store.stats().flights == 0, "all has come")
        found = fetches(blob)
        assert found["received_bytes"] >= len(data)
        assert len(layer.data) < found["wire_bytes"] < len(layer.data) + 10_000
        assert fetches(blob, times=2)["wire_bytes"] == found["wire_bytes"]


def test_what_came_while_it_comes(blob: BlobFile, rig: Rig) -> None:
    release, reached = threading.Event(), threading.Event()
    rig.fake.script(stall(release, 70_000, reached))
    before = fetches(blob)["wire_bytes"]
    reader = threading.Thread(target=blob.pread, args=(1000, 200_000))
    reader.start()
    assert reached.wait(LIMIT)
    until(lambda: fetches(blob)["wire_bytes"] >= before + 70_000, "it is counted")
    release.set()
    reader.join(LIMIT)


def test_nothing_comes_over_the_network_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(100_000))
    with open_blob(str(tmp_path / "image")) as blob:
        assert fetches(blob)["wire_bytes"] == 0
