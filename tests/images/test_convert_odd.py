"""Odd images, as people have them: what is left out or clamped is said, and inspect, mount and convert judge alike."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.images import OCI_CONFIG, digest_of
from tests.support.needs import need_root
from tests.support.ordinary import GZIP, Layout, Member, directory, file, link, read_json, symlink
from tests.support.ordinaryscene import FUSE, need_to_mount
from tests.support.scene import Scene, by_pyerofs
from tests.support.skopeo import tags
from tests.support.tarballs import archive, info

ONE = archive(file("x", b"hello"))
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    need_root()


@pytest.fixture
def layout(scene: Scene) -> Layout:
    return Layout(scene.directory / "layout")


def with_xattr(name: str, **fields: object) -> Member:
    return info("f", mtime=1, pax_headers={f"SCHILY.xattr.{name}": "v"}, **fields), b""


@pytest.mark.parametrize(("member", "said"), [
    (with_xattr("com.apple.provenance"), "left out 1 extended attributes that Linux cannot store: "
     "'com.apple.provenance' of files (1)"),
    (with_xattr("system.nfs4_acl"), "'system.nfs4_acl' of files (1)"),
    (with_xattr("user.foo", type=tarfile.SYMTYPE, linkname="../proc/self/mounts"), "'user.foo' of symbolic links (1)"),
    (with_xattr("user.foo", type=tarfile.FIFOTYPE), "'user.foo' of fifos (1)"),
])  # fmt: skip
def test_an_xattr_that_linux_cannot_store_is_left_out_with_a_warning(
    scene: Scene, layout: Layout, member: Member, said: str
) -> None:
    need_to_mount()
    name = layout.tag(layout.image([archive(member)]), "app")
    done = scene.make("convert", name, f"oci:{scene.directory}/out:app")
    assert done.status == 0
    [line] = [line for line in done.err.splitlines() if "left out" in line]
    assert line.startswith(f"pyerofs: {name}: ") and said in line
    done = scene.mount_image(name, fstype=FUSE)
    assert said in done.err
    assert os.listxattr(scene.mnt / "f", follow_symlinks=False) == []
    by_pyerofs(scene)
    assert "left out" not in scene.mount_image(name, fstype=FUSE).err  # there is nothing to convert any more
    by_pyerofs(scene)


def test_one_warning_counts_for_all_layers(scene: Scene, layout: Layout) -> None:
    headers = {f"SCHILY.xattr.{name}": "v" for name in ("com.apple.a", "com.apple.b", "user.kept")}
    layers = [archive(*(file(f"{n}", pax_headers=headers) for n in range(3)), directory("d", pax_headers=headers))] * 2
    done = scene.make("convert", layout.tag(layout.image(layers), "app"), f"oci:{scene.directory}/out:app")
    [line] = [line for line in done.err.splitlines() if "left out" in line]
    assert "left out 16 extended attributes" in line and "'com.apple.a' of files (6)" in line
    assert "'com.apple.b' of directories (2)" in line and "kept" not in line


def put_config(layout: Layout, kind: str | None, **more: object) -> dict[str, Any]:
    """The config of an image of ONE, with this media type."""
    found = layout.add_json(
        {"os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest_of(ONE)]}, **more}, kind or ""
    )
    return {key: value for key, value in found.items() if key != "mediaType" or kind is not None}


Make = Callable[[Layout], dict[str, Any]]


def with_config(kind: str | None) -> Make:
    return lambda layout: layout.image([ONE], config=put_config(layout, kind))


MOUNTS: dict[str, Make] = {
    **{
        f"a config of the type {kind}": with_config(kind)
        for kind in ("application/octet-stream", "application/json", "text/html", "text/html; charset=utf-8", "", None)
    },
    "docker's manifest": lambda layout: layout.image(
        [ONE], [GZIP], mediaType=DOCKER, config=put_config(layout, "application/octet-stream")
    ),
    "sha512 diff IDs": lambda layout: layout.image([ONE], diff_ids=[digest_of(ONE, "sha512")]),
    "an artifact type beside an image's config": lambda layout: layout.image([ONE], artifactType="application/x"),
    "dots in a name": lambda layout: layout.image([archive(file("usr/../x", b"hello"))]),
    "dots in a link": lambda layout: layout.image([archive(file("y", b"hello"), link("x", "./usr/../y"))]),
    "a link that leads out": lambda layout: layout.image([archive(symlink("s", "../../.."), file("s/x", b"hello"))]),
}  # fmt: skip


@pytest.mark.parametrize("case", MOUNTS)
def test_what_inspect_says_that_it_mounts_does(scene: Scene, layout: Layout, case: str) -> None:
    need_to_mount()
    name = layout.tag(MOUNTS[case](layout), "app")
    said = json.loads(scene.run("inspect", "--json", name).out)["mount"]
    assert (said["error"], said["convert"].partition(",")[0]) == (None, "1 layer of tar+gzip")
    scene.mount_image(name, fstype=FUSE)
    assert (scene.mnt / "x").read_bytes() == b"hello"
    by_pyerofs(scene)


HELM, EMPTY = "application/vnd.cncf.helm.config.v1+json", "application/vnd.oci.empty.v1+json"
NOWHERE = {"os": "unknown", "architecture": "unknown"}
CHART = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
NO_IMAGES: dict[str, tuple[Make, str]] = {
    "a Helm chart": (
        lambda layout: layout.image([ONE], [CHART], config=put_config(layout, HELM)),
        "not a container image: it has a config of the type application/vnd.cncf.helm.config.v1+json",
    ),
    "an artifact": (
        lambda layout: layout.image(
            [ONE], config=put_config(layout, EMPTY), artifactType="application/vnd.example"
        ),
        "not a container image but an artifact of the type application/vnd.example",
    ),
    "no config": (lambda layout: layout.image([ONE], config=None), "not a container image: it has no config"),
    "a config that is none": (
        lambda layout: layout.image([ONE], config=put_config(layout, "application/json", rootfs=None)),
        "the image's config has no diff_ids: is it the image of a container?",
    ),
    "a config that is HTML": (
        lambda layout: layout.image([ONE], config={
            "mediaType": "text/html", "digest": layout.add(b"<html>"), "size": 6,
        }),
        "the image's config is not JSON",
    ),
    "attestations alone": (
        lambda layout: layout.index([{**layout.image([ONE]), "platform": NOWHERE}]),
        "holds nothing but attestations",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_IMAGES)
def test_what_is_no_image_is_refused_alike(scene: Scene, layout: Layout, case: str) -> None:
    need_to_mount()
    make, error = NO_IMAGES[case]
    name = layout.tag(make(layout), "app")
    shown = scene.run("inspect", name)
    assert error in (shown.out.splitlines() or [shown.error])[-1]
    mounted = scene.run("mount", "-t", FUSE, "-o", f"oci.cache={scene.cache}", name, scene.mnt)
    assert mounted.status == 32 and error in mounted.err.splitlines()[-1]
    converted = scene.make("convert", "-q", name, f"oci:{scene.directory}/out")
    assert converted.status == 32 and error in converted.error
    scene.nothing_left()


def test_times_of_other_centuries_are_kept(scene: Scene, layout: Layout) -> None:
    times = {"late": 16_725_225_600, "early": -6_795_000_000, "ours": 1_700_000_000}
    members = [file(name, mtime=time) for name, time in times.items()]
    name = layout.tag(layout.image([archive(*members, directory("d", mtime=times["late"]))]), "app")
    assert scene.make("convert", "-q", name, f"oci:{scene.directory}/out:app").status == 0
    scene.mount_image(f"oci:{scene.directory}/out:app", fstype=FUSE)
    found = {path.name: path.stat().st_mtime_ns for path in scene.mnt.iterdir()}
    assert found == {name: time * 10**9 for name, time in {**times, "d": times["late"]}.items()}
    by_pyerofs(scene)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_blobs_of_another_algorithm(scene: Scene, layout: Layout, algorithm: str) -> None:
    """All of an image but its manifest by sha512, say."""
    entry = layout.image([ONE], diff_ids=[digest_of(ONE, algorithm)])
    manifest = read_json(layout.path, entry["digest"])
    for descriptor in (manifest["config"], *manifest["layers"]):
        data = (layout.path / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()
        descriptor["digest"] = digest_of(data, algorithm)
        path = layout.path / "blobs" / descriptor["digest"].replace(":", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    name = layout.tag(layout.add_json(manifest, manifest["mediaType"]), "app")
    out = scene.directory / "out"
    assert scene.make("convert", "-q", name, f"oci:{out}:app").status == 0
    assert list(tags(out)) == ["app"]


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_layers_that_would_fill_the_disk(scene: Scene, layout: Layout, kind: str) -> None:
    """All of them together."""
    halves = [archive(file(name, bytes(4 << 20))) for name in ("large", "small")]
    name = layout.tag(layout.image(halves, [f"{GZIP.partition('+')[0]}+{kind}"] * 2), "app")
    out = f"oci:{scene.directory}/out"
    done = scene.make("convert", "-q", "-o", "oci.unpacked_max=8M", name, out)
    assert done.status == 32 and "decompresses to is more than 8.0 MiB" in done.error
    assert scene.make("convert", "-q", "-o", "oci.unpacked_max=9M", name, out).status == 0


def test_a_layer_cut_short_is_said(scene: Scene, layout: Layout) -> None:
    whole = layout.image([archive(file("x", os.urandom(300_000)))], [f"{GZIP.partition('+')[0]}+zstd"])
    manifest = read_json(layout.path, whole["digest"])
    [layer] = manifest["layers"]
    data = (layout.path / "blobs" / layer["digest"].replace(":", "/")).read_bytes()[:-1000]
    layer |= {"digest": layout.add(data), "size": len(data)}
    name = layout.tag(layout.add_json(manifest, manifest["mediaType"]), "app")
    done = scene.make("convert", "-q", name, f"oci:{scene.directory}/out")
    assert done.status == 32 and "the layer's zstd stream is cut short" in done.error


def test_the_config_s_own_type_is_kept_out(scene: Scene, layout: Layout) -> None:
    """Whatever the old one's was, the new config says what it is."""
    name = layout.tag(MOUNTS["a config of the type text/html"](layout), "app")
    out = scene.directory / "out"
    assert scene.make("convert", "-q", name, f"oci:{out}:app").status == 0
    assert read_json(out, tags(out)["app"])["config"]["mediaType"] == OCI_CONFIG


def test_holes_take_no_room(scene: Scene, layout: Layout) -> None:
    headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(64 << 20)}
    name = layout.tag(layout.image([archive(file("huge", b"x", pax_headers=headers))]), "app")
    out = scene.directory / "out"
    done = scene.make("convert", "-q", "-o", "oci.unpacked_max=9M", name, f"oci:{out}:app")
    assert done.status == 0, done.err
    [layer] = read_json(out, tags(out)["app"])["layers"]
    assert layer["size"] < 1 << 20
    scene.mount_image(f"oci:{out}:app", fstype=FUSE)
    assert (scene.mnt / "huge").stat().st_size == 64 << 20
    with (scene.mnt / "huge").open("rb") as huge:
        assert huge.read() == b"x".ljust(64 << 20, b"\0")
    by_pyerofs(scene)
