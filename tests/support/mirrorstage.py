"""Two mirrors and a registry, for the tests of failover."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

from pyerofs.http.transport import Transport
from pyerofs.registry.blob import Blob
from pyerofs.registry.client import Registry
from pyerofs.registry.credentials import Credentials
from pyerofs.registry.hosts import Host, HostConfig, parse_api_url
from pyerofs.registry.mirror import Health
from pyerofs.secret import Secret
from tests.support.blobreader import DATA, SIZE
from tests.support.fakeregistry import (
    OCI_MANIFEST,
    FakeRegistry,
)

ACCEPT = (OCI_MANIFEST,)
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()
ME = Credentials("the options", "me", Secret("hush"))
PULL = frozenset(["pull"])
BOTH = frozenset(["pull", "resolve"])


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Stage:
    """Two mirrors and the registry itself, and what was asked of each."""

    def __init__(self, first: FakeRegistry, second: FakeRegistry, server: FakeRegistry) -> None:
        self.first, self.second, self.server = first, second, server
        self.clock = Clock()
        self.trace: list[str] = []
        self.transport = Transport(stall_seconds=1, trace=self.trace.append)

    def registry(self, *capabilities: frozenset[str], **more: Any) -> Registry:
        places = [
            Host(parse_api_url(fake.url), capabilities[number] if capabilities else BOTH)
            for number, fake in enumerate((self.first, self.second))
        ]
        server = Host(None, capabilities[2]) if len(capabilities) > 2 else Host()
        config = HostConfig(tuple(places), server)
        registry = Registry(
            self.server.host, "org/app", self.transport, credentials=lambda: ME, config=config, environ={}, **more
        )
        for mirror in registry.mirrors:
            mirror.health = Health(self.clock)
        return registry

    def blob(self) -> Blob:
        return Blob(self.registry().mirrors, DIGEST, SIZE, clock=self.clock)

    @property
    def counts(self) -> tuple[int, int, int]:
        return len(self.first.requests()), len(self.second.requests()), len(self.server.requests())

    def forget(self) -> None:
        for fake in (self.first, self.second, self.server):
            fake.seen.clear()


@contextlib.contextmanager
def staged() -> Iterator[Stage]:
    """No secret is in the trace at the end."""
    with FakeRegistry() as first, FakeRegistry() as second, FakeRegistry() as server:
        for fake in (first, second, server):
            fake.add_blob(DATA)
        stage = Stage(first, second, server)
        yield stage
        stage.transport.close()
        assert "hush" not in "".join(stage.trace)
