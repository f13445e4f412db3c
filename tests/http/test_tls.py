"""Whom we trust: the system's authorities and those of a host together, whatever form the system's have."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyerofs.errors import RegistryError, UsageError
from pyerofs.http.request import Request
from pyerofs.http.tls import TLS, Authorities, merged
from pyerofs.http.transport import Transport
from pyerofs.http.url import parse
from tests.support.fakeregistry import Certificate, FakeRegistry
from tests.support.nginxserver import Authority


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("system"))


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("private"))


@pytest.fixture(scope="module", params=["bundle", "directory"])
def authorities(
    request: pytest.FixtureRequest, system: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Authorities:
    if request.param == "bundle":
        return Authorities(str(system.ca), None)
    directory = tmp_path_factory.mktemp("hashed")
    (directory / "system.pem").write_bytes(system.ca.read_bytes())
    subprocess.run(["openssl", "rehash", str(directory)], check=True)
    return Authorities(None, str(directory))


@pytest.fixture(scope="module", params=["system", "private"])
def server(request: pytest.FixtureRequest, system: Authority, private: Authority) -> Iterator[FakeRegistry]:
    authority = system if request.param == "system" else private
    with FakeRegistry(certificate=Certificate(*authority.issue("server"))) as fake:
        fake.kind = request.param  # type: ignore[attr-defined]  # the test's own
        yield fake


def test_both_are_trusted(server: FakeRegistry, authorities: Authorities, private: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path)
    url = parse(f"{server.url}/v2/")
    transport = Transport(authorities=authorities)
    for ca in ((str(private.ca),), (str(other.ca), str(private.ca))):
        assert transport.request(Request(url, tls=TLS(ca=ca))).status
    if server.kind == "private":  # type: ignore[attr-defined]  # the test's own
        with pytest.raises(RegistryError, match="not trusted"):
            transport.request(Request(url))
        with pytest.raises(RegistryError, match="not trusted"):
            transport.request(Request(url, tls=TLS(ca=(str(other.ca),))))
    else:
        assert transport.request(Request(url)).status


def test_files_are_read_again_when_they_change(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("one")
    assert merged((str(path),)) == b"one"
    path.write_text("two!")
    assert merged((str(path), str(path))) == b"two!\ntwo!"
    replacement = tmp_path / "new"
    replacement.write_text("3")
    os.replace(replacement, path)
    assert merged((str(path),)) == b"3"
    path.unlink()
    with pytest.raises(UsageError, match=r"cannot read the CA certificates in .*ca\.pem"):
        merged((str(path),))
