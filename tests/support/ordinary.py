"""Ordinary images, of tar layers, in OCI layout directories; and how native ones are mounted to look into them."""

from __future__ import annotations

import contextlib
import gzip
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import zstandard

from tests.support.images import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, digest_of
from tests.support.needs import need
from tests.support.tarballs import archive, info
from tests.support.trees import ACL, CAPABILITY

Member = tuple[tarfile.TarInfo, bytes]
TAR = "application/vnd.oci.image.layer.v1.tar"
GZIP, ZSTD = f"{TAR}+gzip", f"{TAR}+zstd"
PACK: dict[str, Callable[[bytes], bytes]] = {
    TAR: lambda data: data,
    GZIP: lambda data: gzip.compress(data, 6, mtime=0),
    ZSTD: lambda data: zstandard.ZstdCompressor().compress(data),
}


def file(name: str, content: bytes = b"", **fields: object) -> Member:
    return info(name, **{"mtime": 1_600_000_000, **fields}), content


def directory(name: str, **fields: object) -> Member:
    return info(name, type=tarfile.DIRTYPE, **{"mode": 0o755, "mtime": 1_600_000_001, **fields}), b""


def symlink(name: str, target: str) -> Member:
    return info(name, type=tarfile.SYMTYPE, linkname=target, mtime=1_600_000_002), b""


def link(name: str, target: str) -> Member:
    return info(name, type=tarfile.LNKTYPE, linkname=target), b""


def device(name: str, kind: bytes, major: int, minor: int) -> Member:
    return info(name, type=kind, devmajor=major, devminor=minor, mode=0o660, mtime=3), b""


def _xattr(name: str, value: bytes) -> dict[str, str]:
    return {f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape")}


SPARSE = {"GNU.sparse.map": "1048576,6", "GNU.sparse.numblocks": "1", "GNU.sparse.size": "3145728"}

# Five layers with everything that a layer may have.
LAYERS: tuple[list[Member], ...] = (
    [
        directory("./", mode=0o751, mtime=1_500_000_000),
        directory("./bin"), file("./bin/sh", b"#!" * 5000, mode=0o755), link("./bin/bash", "./bin/sh"),
        directory("./d", mode=0o1777, uid=5, gid=6), file("./d/a", b"a"), file("./d/b", b"b"), file("./d/c", b"c"),
        directory("./gone"), file("./gone/x", b"x"), directory("./gone/deep"), file("./gone/deep/y", b"y"),
        directory("./opaque"), file("./opaque/old", b"old"), directory("./opaque/sub"), file("./opaque/sub/z", b"z"),
        file("./becomes-dir", b"f"), directory("./becomes-file"), file("./becomes-file/inner", b"i"),
        file("./lonely", b"to be linked", mode=0o4755, uid=1000, gid=1001),
        file("./to-move", b"moves"),
        directory("./usr"), directory("./usr/lib"), symlink("./lib", "usr/lib"), file("./usr/lib/one", b"1"),
    ],
    [
        directory("d", mode=0o1777, uid=5, gid=6, mtime=1_600_000_100), file("d/.wh.a"), file("d/b", b"B" * 9000),
        file(".wh.gone"),
        file("capable", b"x", mode=0o755, pax_headers=_xattr("security.capability", CAPABILITY)),
        file("acl", b"x", pax_headers=_xattr("system.posix_acl_access", ACL)),
        file("user", b"x", pax_headers=_xattr("user.binary", bytes(range(256)))),
        directory("marked", pax_headers=_xattr("user.dir", b"v")),
        file("setuid", b"s", mode=0o6755), file("owner", b"o", uid=65_536, gid=4_000_000),
        file("fine", b"t", pax_headers={"mtime": "1600000000.123456789"}), file("old", b"t", mtime=-1000),
    ],
    [
        directory("opaque", mode=0o700), file("opaque/.wh..wh..opq"), file("opaque/new", b"new"),
        device("null", tarfile.CHRTYPE, 1, 3), device("disk", tarfile.BLKTYPE, 259, 70_000),
        (info("fifo", type=tarfile.FIFOTYPE, mode=0o622, mtime=4), b""),
        symlink("dangling", "no/where"), symlink("long-link", "x/" * 1500 + "y"),
        file("n" * 240, b"a long name"), directory("/".join(["p" * 60])),
        file("Ünïcödé ☃ 名前", b"u"), file("line\nbreak \\ \"quote'", b"q"), file("not \udcff utf-8", b"n"),
        file("sparse", b"island", pax_headers=SPARSE),
        file("empty"), file("page", bytes(range(256)) * 16), file("page1", bytes(range(256)) * 16 + b"1"),
        file("large", b"".join(b"%015d\n" % number for number in range(300_000))),
    ],
    [
        directory("deep"), *(directory("/".join(["deep", *["q" * 50] * depth])) for depth in range(1, 9)),
        file("/".join(["deep", *["q" * 50] * 8, "bottom"]), b"deep down"),
        link("linked", "lonely"), link("moved", "to-move"), file(".wh.to-move"),
        file(".wh.becomes-dir"), directory("becomes-dir"), file("becomes-dir/in", b"in"),
        file("becomes-file", b"now a file"),
        file("lib/two", b"2"),
    ],
    [file(".wh.page1"), directory("gone", mode=0o711), file("gone/again", b"again"), file("bin/.wh..wh.aufs")],
)  # fmt: skip


class Layout:
    """A layout directory that is written by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blobs" / "sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        self._entries: list[dict[str, Any]] = []

    def add(self, data: bytes) -> str:
        digest = digest_of(data)
        (self.path / "blobs" / digest.replace(":", "/")).write_bytes(data)
        return digest

    def add_json(self, value: object, media_type: str) -> dict[str, Any]:
        data = json.dumps(value).encode()
        return {"mediaType": media_type, "digest": self.add(data), "size": len(data)}

    def image(
        self,
        layers: Sequence[bytes],
        media_types: Sequence[str] = (),
        *,
        diff_ids: Sequence[str] | None = None,
        architecture: str = "amd64",
        command: Sequence[str] = ("sh",),
        **manifest: object,
    ) -> dict[str, Any]:
        """Of these tar archives; its descriptor."""
        kinds = media_types or [GZIP] * len(layers)
        blobs = [PACK.get(kind, PACK[TAR])(layer) for layer, kind in zip(layers, kinds, strict=True)]
        config = {
            "architecture": architecture,
            "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": list(command), "X-unknown": {"kept": [1, 2]}},
            "rootfs": {"type": "layers", "diff_ids": diff_ids or [digest_of(layer) for layer in layers]},
            "history": [{"created_by": f"step {number}"} for number in range(len(layers))],
        }
        return self.add_json({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self.add_json(config, OCI_CONFIG),
            "layers": [
                {"mediaType": kind, "digest": self.add(blob), "size": len(blob)}
                for kind, blob in zip(kinds, blobs, strict=True)
            ],
            **manifest,
        }, OCI_MANIFEST)  # fmt: skip

    def index(self, entries: Sequence[dict[str, Any]], **more: object) -> dict[str, Any]:
        return self.add_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries, **more}, OCI_INDEX)

    def tag(self, entry: dict[str, Any], name: str) -> str:
        """The image's name, for whoever takes oci:DIR:TAG."""
        annotations = {"org.opencontainers.image.ref.name": name}
        self._entries.append({**entry, "annotations": annotations})
        (self.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": self._entries}))
        return f"oci:{self.path}:{name}"


def tars() -> list[bytes]:
    return [archive(*members) for members in LAYERS]


def read_json(layout: Path, digest: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((layout / "blobs" / digest.replace(":", "/")).read_bytes())
    return found


@contextlib.contextmanager
def mounted(layers: Sequence[Path], directory: Path) -> Iterator[Path]:
    """What the kernel shows of EROFS layers, base first: overlayfs over each of them."""
    need("mount", "mount")
    targets: list[Path] = []
    try:
        for number, layer in enumerate(layers):
            target = directory / f"layer{number}"
            target.mkdir(parents=True)
            subprocess.run(["mount", "-t", "erofs", "-o", "ro", layer, target], check=True)
            targets.append(target)
        merged = directory / "merged"
        merged.mkdir()
        if len(layers) == 1:
            subprocess.run(["mount", "--bind", targets[0], merged], check=True)
        else:
            lowers = ":".join(str(target) for target in reversed(targets))
            subprocess.run(["mount", "-t", "overlay", "-o", f"ro,lowerdir={lowers}", "overlay", merged], check=True)
        targets.append(merged)
        yield merged
    finally:
        for target in reversed(targets):
            subprocess.run(["umount", target], check=True)


def check_layer(path: Path) -> None:
    need("fsck.erofs", "erofs-utils")
    done = subprocess.run(["fsck.erofs", "--extract", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
