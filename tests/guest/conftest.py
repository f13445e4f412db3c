"""Tests of this directory run inside the guest only; test_kernel.py boots it and shows their results by name.

Each result is written as a line of JSON as soon as it is known, so that a guest that hangs or crashes loses only the
results of the tests that it did not finish.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyerofs.kernel import nbd
from tests.guest.nbdserver import FLAGS_READ_ONLY, Server

GUEST = "PYEROFS_GUEST"  # the file for the results; empty while the host only collects names

if GUEST not in os.environ:
    collect_ignore_glob = ["test_*.py"]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if os.environ.get(GUEST) and (report.when == "call" or report.outcome != "passed"):
        line = json.dumps({"id": report.nodeid, "outcome": report.outcome, "text": report.longreprtext})
        with Path(os.environ[GUEST]).open("a") as results:
            results.write(line + "\n")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "qemu: runs in the newer kernel: it needs that, or CPUs, or must be seen there")


@pytest.fixture(scope="session", autouse=True)
def own_cache() -> Iterator[None]:
    """The default cache is not the host's: /var/cache is its directory, seen over virtiofs."""
    subprocess.run(["mount", "-t", "tmpfs", "cache", "/var/cache"], check=True)
    yield
    subprocess.run(["umount", "/var/cache"], check=True)


Attach = Callable[..., nbd.NBDDevice]


@pytest.fixture
def attach() -> Iterator[Attach]:
    """nbd.attach() of a Server, its device settled; disconnected at the end, whatever the test has done."""
    devices = []

    def attach(
        server: Server, flags: int = FLAGS_READ_ONLY, identifier: str = "test", **options: object
    ) -> nbd.NBDDevice:
        device = nbd.attach(server.kernel_ends, len(server.data), flags, identifier, **options)  # type: ignore[arg-type]  # a fake
        devices.append(device)
        server.release()
        device.settle()
        return device

    yield attach
    for device in devices:
        device.disconnect()
