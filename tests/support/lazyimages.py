"""Layers with a table of contents, eStargz and zstd:chunked: by a builder of our own, and by the real tools.

The builder makes what the tools cannot be made to: chunks that share a member, old footers, damage. It follows
stargz-snapshotter's estargz/estargz.go and containers/storage's pkg/chunked/compressor/compressor.go.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import struct
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

import zstandard

from pyerofs.tar.decompress import LayerStream
from tests.support import skopeo
from tests.support.images import OCI_CONFIG, OCI_MANIFEST, digest_of
from tests.support.needs import need
from tests.support.ordinary import GZIP, LAYERS, ZSTD, Layout, Member, file, link, read_json
from tests.support.tarballs import archive, info

TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
CONTAINERS, STARGZ = "io.github.containers.zstd-chunked.", "io.containers.zstd-chunked."
HOLE_MIN = 1024  # bytes of zeros that are told apart from data
_KINDS = {
    tarfile.REGTYPE: "reg",
    tarfile.AREGTYPE: "reg",
    tarfile.LNKTYPE: "hardlink",
    tarfile.SYMTYPE: "symlink",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.DIRTYPE: "dir",
    tarfile.FIFOTYPE: "fifo",
}
_START_LIMIT = 30.0  # seconds
Edit = Callable[[dict[str, Any]], None]


class LazyLayer(NamedTuple):
    """A layer as it is in a registry."""

    blob: bytes
    media_type: str
    annotations: dict[str, str]

    def read(self, offset: int, length: int) -> bytes:
        return self.blob[offset : offset + length]


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, 6, mtime=0)


def compress_zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def _skippable(data: bytes) -> bytes:
    return struct.pack("<II", 0x184D2A50, len(data)) + data


class _Blob:
    """Compressed members, one after another, each closed when asked for."""

    def __init__(self, compress: Callable[[bytes], bytes]) -> None:
        self._compress = compress
        self.done = b""
        self.open = b""

    def close(self) -> int:
        """Close the member, and give where the next one begins."""
        if self.open:
            self.done += self._compress(self.open)
            self.open = b""
        return len(self.done)


def _as_go(name: str) -> str:
    """As Go writes a name: what is not UTF-8 is lost."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _entry(member: tarfile.TarInfo, *, exact: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": _as_go(member.name) + "/" * member.isdir(), "type": _KINDS[member.type]}
    if member.isreg():
        entry["size"] = member.size
    if member.islnk() or member.issym():
        entry["linkName"] = _as_go(member.linkname)
    if member.ischr() or member.isblk():
        entry |= {"devMajor": member.devmajor, "devMinor": member.devminor}
    seconds, fraction = (member.pax_headers.get("mtime") or str(member.mtime)).partition(".")[::2]
    if member.mtime and exact:
        time = f"{datetime.fromtimestamp(int(seconds), UTC):%Y-%m-%dT%H:%M:%S}"
        entry["modtime"] = time + (f".{fraction}" if fraction else "") + "Z"
    elif member.mtime:
        entry["modtime"] = f"{datetime.fromtimestamp(round(float(member.mtime)), UTC):%Y-%m-%dT%H:%M:%SZ}"
    xattrs = {
        key.removeprefix("SCHILY.xattr."): base64.b64encode(value.encode("utf-8", "surrogateescape")).decode()
        for key, value in member.pax_headers.items()
        if key.startswith("SCHILY.xattr.")
    }
    entry |= {"mode": member.mode, "uid": member.uid, "gid": member.gid, "xattrs": xattrs}
    return {key: value for key, value in entry.items() if value or key in ("name", "type")}


def _walk(tar: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes, bytes]]:
    """Each member with its headers and its content as they are in the archive."""
    at = 0
    with tarfile.open(fileobj=io.BytesIO(tar), errors="surrogateescape") as opened:
        for member in opened:
            end = member.offset_data + (member.size if member.isreg() else 0)
            yield member, tar[at : member.offset_data], tar[member.offset_data : end]
            at = end
    yield tarfile.TarInfo(), tar[at:], b""


def stargz_layer(
    tar: bytes,
    *,
    chunk: int = 4 << 20,
    share: int = 0,
    footer: str = "new",
    zstd: bool = False,
    edit: Edit | None = None,
) -> LazyLayer:
    """As stargz-snapshotter makes one. `chunk`, `share`: bytes of content of a chunk, and of a member that takes more
    chunks. `footer`: "new", "old", "external"; `edit` changes the TOC."""
    blob = _Blob(compress_zstd if zstd else _gzip)
    entries: list[dict[str, Any]] = []
    start = 0
    fresh = True
    for member, headers, content in _walk(tar):
        blob.open += headers
        if not member.name:
            break
        entry = _entry(member, exact=False)
        if member.isreg():
            entry["digest"] = digest_of(content)
        entries.append(entry)
        for at in range(0, len(content), chunk):
            if at:
                entry = {"name": _as_go(member.name), "type": "chunk", "chunkOffset": at}
                entries.append(entry)
            piece = content[at : at + chunk]
            if len(piece) == chunk:
                entry["chunkSize"] = chunk
            if len(blob.open) >= share or (fresh and not share):
                start = blob.close()
            fresh = False
            entry |= {"offset": start, "innerOffset": len(blob.open), "chunkDigest": digest_of(piece)}
            for key in ("offset", "innerOffset"):
                if not entry[key]:
                    del entry[key]
            blob.open += piece
    offset = blob.close()
    toc: dict[str, Any] = {"version": 1, "entries": entries}
    if edit:
        edit(toc)
    text = json.dumps(toc, indent="\t").encode()
    annotations = {TOC_DIGEST: digest_of(text)}
    if zstd:
        stored = compress_zstd(text)
        annotations[f"{STARGZ}manifest-checksum"] = digest_of(stored)
        annotations[f"{STARGZ}manifest-position"] = f"{offset + 8}:{len(stored)}:{len(text)}:1"
        ending = struct.pack("<QQQQ", offset + 8, len(stored), len(text), 1) + b"GnUlInUx"
        return LazyLayer(blob.done + _skippable(stored) + _skippable(ending), ZSTD, annotations)
    if footer == "external":
        return LazyLayer(blob.done + _footer(b"SG" + struct.pack("<H", 17) + b"STARGZEXTERNALTOC"), GZIP, annotations)
    return LazyLayer(blob.done + toc_member(text) + toc_footer(offset, old=footer == "old"), GZIP, annotations)


def toc_member(text: bytes) -> bytes:
    """The last but one member of an eStargz layer."""
    return _gzip(archive((info("stargz.index.json"), text)))


def toc_footer(offset: int, *, old: bool = False) -> bytes:
    """The last one. `offset`: where the TOC begins."""
    place = b"%016xSTARGZ" % offset
    return _footer(place if old else b"SG" + struct.pack("<H", len(place)) + place)


def _footer(extra: bytes) -> bytes:
    """An empty gzip member with an extra field."""
    head = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff" + struct.pack("<H", len(extra))
    return head + extra + b"\x01\0\0\xff\xff" + bytes(8)


def chunked_layer(tar: bytes, *, chunk: int = 64 << 10, edit: Edit | None = None) -> LazyLayer:
    """As containers/storage makes one, but for where it cuts. Parameters as for stargz_layer()."""
    blob = _Blob(compress_zstd)
    entries: list[dict[str, Any]] = []
    for member, headers, content in _walk(tar):
        blob.open += headers
        if not member.name:
            break
        entry = _entry(member, exact=True)
        entries.append(entry)
        if not content:
            continue
        pieces = list(_cut(content, chunk))
        entry |= {"digest": digest_of(content), "offset": blob.close()}
        for number, (at, piece, zeros) in enumerate(pieces):
            of = entry if not number else {"type": "chunk", "name": _as_go(member.name), "chunkOffset": at}
            if number:
                entries.append(of)
            of["offset"] = blob.close()
            if len(pieces) > 1:
                of |= {"chunkSize": len(piece), "chunkDigest": digest_of(piece)}
                if zeros:
                    of["chunkType"] = "zeros"
            blob.open += piece
        entry["endOffset"] = blob.close()
    offset = blob.close() + 8
    split = compress_zstd(b"the parts of the archive that are no content")
    toc: dict[str, Any] = {"version": 1, "entries": entries, "tarSplitDigest": digest_of(split)}
    if edit:
        edit(toc)
    text = json.dumps(toc, separators=(",", ":")).encode()
    stored = compress_zstd(text)
    split_at = offset + len(stored) + 8
    annotations = {
        f"{CONTAINERS}manifest-checksum": digest_of(stored),
        f"{CONTAINERS}manifest-position": f"{offset}:{len(stored)}:{len(text)}:1",
        f"{CONTAINERS}tarsplit-position": f"{split_at}:{len(split)}:44",
    }
    ending = struct.pack("<7Q", offset, len(stored), len(text), 1, split_at, len(split), 44) + b"GNUlInUx"
    return LazyLayer(
        blob.done + _skippable(stored) + _skippable(split) + _skippable(ending),
        ZSTD,
        annotations,
    )


def _cut(content: bytes, chunk: int) -> Iterator[tuple[int, bytes, bool]]:
    """Offsets, bytes, and whether they are zeros."""
    at = 0
    for found in re.finditer(rb"\0{%d,}" % HOLE_MIN, content):
        while at < found.start():
            end = min(at + chunk, found.start())
            yield at, content[at:end], False
            at = end
        yield at, found[0], True
        at = found.end()
    while at < len(content):
        yield at, content[at : at + chunk], False
        at += chunk


# Every kind of entry that such layers can have, and contents that are cut, shared and empty. What LAYERS has besides
# (names that are not UTF-8, sparse files) no tool makes such a layer of.
STORABLE: tuple[list[Member], ...] = tuple(
    [member for member in layer if "\udcff" not in member[0].name and member[0].name != "sparse"] for layer in LAYERS
)
HOLES = file("holes", bytes(9000) + b"data" * 2000 + bytes(70_000) + b"end")
SAME = [file("same-1", b"the same" * 3000), file("same-2", b"the same" * 3000), link("same-3", "same-1")]
EVERYTHING = archive(
    *{
        member[0].name.removeprefix("./"): member
        for layer in STORABLE[:3]
        for member in layer
        if ".wh." not in member[0].name
    }.values(),
    HOLES,
    *SAME,
)


# Images


def lazy_image(layout: Layout, layers: Sequence[LazyLayer], tag: str) -> str:
    """Put an image of these layers into a layout; its name."""
    diff_ids = [LayerStream(io.BytesIO(layer.blob)).finish() for layer in layers]
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    described = [
        {
            "mediaType": layer.media_type,
            "digest": layout.add(layer.blob),
            "size": len(layer.blob),
            "annotations": layer.annotations,
        }
        for layer in layers
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": layout.add_json(config, OCI_CONFIG),
        "layers": described,
    }
    return layout.tag(layout.add_json(manifest, OCI_MANIFEST), tag)


def lazy_layers(layout: Path, tag: str) -> list[LazyLayer]:
    """The layers of an image in a layout."""
    manifest = read_json(layout, skopeo.tags(layout)[tag])
    return [
        LazyLayer(
            (layout / "blobs" / layer["digest"].replace(":", "/")).read_bytes(),
            layer["mediaType"],
            layer.get("annotations", {}),
        )
        for layer in manifest["layers"]
    ]


def by_skopeo(source: str, layout: Path, tag: str) -> str:
    """Make zstd:chunked layers as containers/storage does; the new image's name. `layout`: a new one, or skopeo would
    take layers with the same content that it has made before."""
    name = f"oci:{layout}:{tag}"
    skopeo.copy(source, name, "--dest-compress-format", "zstd:chunked")
    return name


class CtrRemote:
    """containerd and ctr-remote, which is stargz-snapshotter's converter. `directory` takes all they keep."""

    def __init__(self, directory: Path) -> None:
        for program, package in (("containerd", "containerd"), ("ctr-remote", "stargz-snapshotter")):
            need(program, package)
        self._directory = directory
        self._socket = directory / "containerd.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        config = self._directory / "config.toml"
        config.write_text(
            'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'root = "{self._directory}/root"\nstate = "{self._directory}/state"\n'
            f'[grpc]\naddress = "{self._socket}"\n'
            f'[plugins."io.containerd.internal.v1.opt"]\npath = "{self._directory}/opt"\n'
        )
        log = self._directory / "containerd.log"
        with log.open("wb") as out:
            self._process = subprocess.Popen(["containerd", "-c", config], stdout=out, stderr=out)
        deadline = time.monotonic() + _START_LIMIT
        while subprocess.run(["ctr", "-a", self._socket, "version"], capture_output=True).returncode:
            assert self._process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait()

    def convert(self, source: str, layout: Path, tag: str, *options: str) -> str:
        """Convert an image; `options`: as of `ctr-remote images convert`. The new one's name."""
        archive_file = self._directory / "image.tar"
        skopeo.copy(source, f"oci-archive:{archive_file}:app")
        self._run("ctr", "images", "import", "--no-unpack", "--base-name", "docker.io/test/app", archive_file)
        names = ("docker.io/test/app:app", f"docker.io/test/app:{tag}")
        self._run("ctr-remote", "images", "convert", *options, "--oci", *names)
        made = self._directory / f"{tag}.tar"
        self._run("ctr", "images", "export", made, names[1])
        skopeo.copy(f"oci-archive:{made}", f"oci:{layout}:{tag}")
        return f"oci:{layout}:{tag}"

    def _run(self, program: str, *arguments: str | Path) -> None:
        done = subprocess.run([program, "-a", self._socket, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
