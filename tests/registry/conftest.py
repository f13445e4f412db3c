"""One repository at a registry that misbehaves on command, with a place that it can redirect to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyerofs.http.transport import Transport
from pyerofs.registry.blob import Blob
from pyerofs.registry.client import Registry
from pyerofs.registry.credentials import Credentials
from pyerofs.secret import Secret
from tests.support.blobreader import DATA, SIZE
from tests.support.fakeregistry import FakeRegistry

ME = Credentials("the options", "me", Secret("hush"))


@pytest.fixture
def cdn() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        fake.add_blob(DATA)
        yield fake


@pytest.fixture
def server() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        fake.add_blob(DATA)
        yield fake


@pytest.fixture
def trace() -> list[str]:
    return []


@pytest.fixture
def registry(server: FakeRegistry, trace: list[str]) -> Iterator[Registry]:
    transport = Transport(stall_seconds=1, trace=trace.append)
    yield Registry(server.host, "org/app", transport, credentials=lambda: ME)
    transport.close()
    assert "hush" not in "".join(trace)


@pytest.fixture
def blob(registry: Registry, server: FakeRegistry) -> Blob:
    return registry.blob(next(iter(server.blobs)), SIZE)
