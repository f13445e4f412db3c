"""A whole system, converted: every file as umoci unpacks it, and its programs run. tests/guest has it over NBD."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyerofs.cli import main
from tests.support import skopeo
from tests.support.dockerregistry import DockerRegistry
from tests.support.needs import need
from tests.support.ordinary import check_layer, mounted, read_json
from tests.support.rootfs import COMMANDS, RootFS, rootfs, run_in
from tests.support.trees import assert_same


@pytest.fixture(scope="module")
def system() -> RootFS:
    return rootfs()


@pytest.fixture(scope="module")
def converted(system: RootFS, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout with the native image; its blobs."""
    path = tmp_path_factory.mktemp("native") / "layout"
    assert main.main(["convert", "-q", "-o", f"oci.cache={path.parent}/cache", system.name, f"oci:{path}:app"]) == 0
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    need("docker-registry", "docker-registry")
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as server:
        yield server


def layers(layout: Path) -> list[Path]:
    manifest = read_json(layout, skopeo.tags(layout)["app"])
    return [layout / "blobs" / layer["digest"].replace(":", "/") for layer in manifest["layers"]]


def test_the_kernel_shows_what_umoci_unpacks(system: RootFS, converted: Path, tmp_path: Path) -> None:
    with mounted(layers(converted), tmp_path) as root:
        assert_same(system.entries, root)
        assert [run_in(root, command) for command in COMMANDS] == system.said


def test_what_the_image_is_about_is_there(system: RootFS) -> None:
    """Else the comparison would be of little worth."""
    found = system.entries
    assert len(found) > 5000
    assert {"usr/share/doc/README", "usr/share/doc/late", "usr/share/man/new", "usr/share/bug"} <= set(found)
    assert [name for name in found if name.startswith("usr/share/doc/")] == [
        "usr/share/doc/README", "usr/share/doc/late"]  # fmt: skip
    assert not {"usr/bin/faillog", "usr/share/locale", "etc/motd", "etc/motd/inner", "opt/sparse"} & set(found)
    assert found["usr/bin/bash"].links == ("usr/bin/bash", "usr/local/bin/another-bash")
    assert found["usr/bin/perl"].links == ("usr/bin/perl", "usr/bin/perl5.36.0")
    assert found["opt/two"].links == ("opt/one", "opt/two")
    assert found["usr/bin/openssl"].xattrs.keys() == {"security.capability"}
    assert found["usr/bin/capable"].xattrs == {"user.twice": b"second"}
    assert found["etc/skel"].mode == "1777"
    assert (found["dev/odd"].content, found["dev/another-null"].content) == ("259:70000", "1:3")
    assert (found["run/fifo"].kind, found["usr/bin/passwd"].mode, found["etc/shadow"].owner) == (
        "p",
        "4711",
        (0, 12345),
    )
    assert found["usr/bin/tool"].kind == "-"
    assert found["fine"].mtime_ns == 1_600_000_000_123_456_789
    assert all(said for said in system.said)


def test_each_layer_is_sound(converted: Path) -> None:
    found = layers(converted)
    assert len(found) == 5
    for path in found:
        check_layer(path)


def test_skopeo_copies_it_unchanged(converted: Path, server: DockerRegistry, tmp_path: Path) -> None:
    there = f"docker://{server.host}/system:app"
    skopeo.copy(f"oci:{converted}:app", there)
    skopeo.copy(there, f"oci:{tmp_path}/back:app")
    assert skopeo.tags(tmp_path / "back") == skopeo.tags(converted)
    assert skopeo.blobs(tmp_path / "back") == skopeo.blobs(converted)
