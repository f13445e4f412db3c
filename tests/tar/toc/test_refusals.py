"""TOCs that do not say exactly what is in the layer: each is a TocError in one line, and never anything else."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from typing import Any

import pytest

from pyerofs.tar.toc import entries as toc_entries
from pyerofs.tar.toc import formats, json_stream
from pyerofs.tar.toc.model import UNIT_MAX, Toc, TocError, Units
from tests.support import tocs
from tests.support.lazyimages import (
    CONTAINERS,
    STARGZ,
    TOC_DIGEST,
    LazyLayer,
    chunked_layer,
    stargz_layer,
)
from tests.support.ordinary import GZIP, TAR, ZSTD, directory, file
from tests.support.tarballs import archive

SMALL = archive(directory("d"), file("d/one", b"1" * 5000), file("d/two", b"2" * 5000), file("d/empty"))
ONE, TWO = 1, 2  # their places among the entries
CHUNKS = archive(file("large", bytes(range(256)) * 40))
HASH = f"sha256:{'ab' * 32}"


def change(number: int, **members: object) -> Callable[[dict[str, Any]], None]:
    """Change members of an entry; None takes one out."""

    def edit(toc: dict[str, Any]) -> None:
        for key, value in members.items():
            toc["entries"][number][key] = value
            if value is None:
                del toc["entries"][number][key]

    return edit


def refused(layer: LazyLayer, match: str) -> None:
    with pytest.raises(TocError, match=match) as caught:
        tocs.read(layer)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(("it ", "its ", "the ", "there ", "a part"))


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (change(ONE, name="d/o\ufffdne"), "not UTF-8"),
        (change(ONE, name="d/\ud800"), "surrogate"),
        (change(ONE, name="d/\0"), "NUL"),
        (change(ONE, name=5), "'name'"),
        (change(ONE, name="d/two"), "'d/two' twice"),
        (change(ONE, name="./d//two"), "'d/two' twice"),
        (change(ONE, type="whiteout"), "unknown type 'whiteout'"),
        (change(ONE, type=None), "unknown type None"),
        (change(ONE, type=["reg"]), "unknown type"),
        (change(ONE, type="chunk"), "unknown type 'chunk'"),
        (change(ONE, size=2**63), "'size'"),
        (change(ONE, size=-1), "'size'"),
        (change(ONE, size="5000"), "'size'"),
        (change(ONE, size=5000.0), "'size'"),
        (change(ONE, size=True), "'size'"),
        (change(ONE, chunkSize=4000), "do not make up|no digest"),
        (change(ONE, chunkOffset=1), "do not make up"),
        (change(ONE, digest=None, chunkDigest=None), "no digest"),
        (change(ONE, digest=HASH, chunkDigest=f"sha256:{'cd' * 32}"), "two digests"),
        (change(ONE, digest="sha512:" + "ab" * 64, chunkDigest=None), "SHA-256"),
        (change(ONE, digest="sha256:xyz", chunkDigest=None), "SHA-256"),
        (change(ONE, digest=f"sha256:{'a b ' * 16}", chunkDigest=None), "SHA-256"),
        (change(ONE, offset=10**9), "outside"),
        (change(ONE, offset=-5), "'offset'"),
        (change(TWO, offset=0), "do not rise|overlap"),
        (change(TWO, offset=2**70), "'offset'"),
        (change(ONE, uid=2**32 - 1), "'uid'"),
        (change(ONE, gid=-1), "'gid'"),
        (change(ONE, mode="rw"), "'mode'"),
        (change(ONE, modtime="yesterday"), "RFC 3339"),
        (change(ONE, modtime="2020-02-31T00:00:00Z"), "RFC 3339"),
        (change(ONE, modtime=5), "'modtime'"),
        (change(ONE, modtime=["2020-02-02T00:00:00Z"]), "'modtime'"),
        (change(ONE, digest=["x"]), "SHA-256|two digests"),
        (change(ONE, xattrs={"user.x": "?"}), "base64"),
        (change(ONE, xattrs={"user.x": 7}), "base64"),
        (change(ONE, xattrs=["user.x"]), "'xattrs'"),
        (change(ONE, xattrs={"user.\ufffd": "eA=="}), "not UTF-8"),
        (change(ONE, type="symlink", linkName="\ufffd"), "not UTF-8"),
        (change(ONE, type="char", devMajor=4096), "'devMajor'"),
        (change(ONE, chunkType="holes"), "unknown type 'holes'"),
        (lambda toc: toc.update(version=2), "version"),
        (lambda toc: toc.update(version=True), "version"),
        (lambda toc: toc.pop("version"), "version"),
        (lambda toc: toc.pop("entries"), "no entries"),
        (lambda toc: toc.update(entries={}), "'entries'"),
        (lambda toc: toc["entries"].append(None), "an object"),
        (lambda toc: toc["entries"].append([]), "an object"),
        (lambda toc: toc["entries"].reverse(), "do not rise|outside|overlap"),
        (lambda toc: toc["entries"].append(toc["entries"][1]), "twice"),
    ],
)
@pytest.mark.parametrize("make", [stargz_layer, chunked_layer], ids=["estargz", "zstd:chunked"])
def test_what_is_not_exact(make: Callable[..., LazyLayer], edit: Callable[[dict[str, Any]], None], why: str) -> None:
    refused(make(SMALL, edit=edit), why)


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (change(0, size=10239), "do not make up"),
        (change(0, size=10241), "do not make up"),
        (change(1, chunkOffset=999), "do not make up"),
        (change(1, chunkOffset=1001), "do not make up"),
        (change(1, chunkSize=999), "do not make up"),
        (change(1, chunkSize=1001), "do not make up"),
        (change(1, chunkDigest=None), "no digest"),
        (change(1, name="small"), "another file"),
        (change(2, offset=1), "do not rise"),
        (change(0, endOffset=1), "do not rise|outside"),
        (change(0, endOffset=10**8), "do not rise|outside"),
        (lambda toc: toc["entries"].pop(), "do not make up"),
        (lambda toc: toc["entries"].append(toc["entries"][-1]), "do not make up"),
    ],
)
def test_chunks_that_do_not_fit(edit: Callable[[dict[str, Any]], None], why: str) -> None:
    refused(chunked_layer(CHUNKS, chunk=1000, edit=edit), why)


def test_chunks_that_overlap_in_a_member() -> None:
    def edit(toc: dict[str, Any]) -> None:
        last = toc["entries"][-1]
        assert last["innerOffset"]
        last["innerOffset"] -= 1

    refused(stargz_layer(CHUNKS, chunk=1000, share=100_000, edit=edit), "overlap")


def test_a_unit_that_nothing_can_hold() -> None:
    refused(stargz_layer(archive(file("large", bytes(UNIT_MAX + 1))), chunk=UNIT_MAX * 2), f"at most {UNIT_MAX}")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "JSON"),
        (b"[]", "JSON"),
        (b"{", "JSON"),
        (b"{}", "no entries"),
        (b'{"version":1,"entries":[]', "JSON"),
        (b'{"version":1,"entries":[],}', "JSON"),
        (b'{"version":1,"entries":[{},]}', "unknown type|JSON"),
        (b'{"version":1,"entries":[]} {}', "followed"),
        (b'{"version":1 "entries":[]}', "JSON"),
        (b'{"version":1,"version":2,"entries":[]}', "another's"),
        (b'{"version":1,"entries":[],"entries":[]}', "another's"),
        (b'{1:2,"entries":[]}', "no name"),
        (b'{"version":1,"entries":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "JSON"),
        (b'{"version":1,"entries":[{"type":"dir","name":' + b'{"a":' * 100_000, "JSON"),
        (b'{"version":1,"entries":[{"type":"dir","name":"a","mode":' + b"9" * 100_000 + b"}]}", "JSON|huge"),
        (b'{"version":1,"entries":[{"type":"dir","name":"a","mode":1e400}]}', "'mode'"),
        (b'{"version":1,"entries":[{"type":"dir","name":"a","mode":NaN}]}', "'mode'"),
        (b'{"version":1,"entries":[{"type":"dir","name":"\xff"}]}', "UTF-8"),
        (b'{"version":1,"entries":[{"type":"dir","name":"\xc3', "UTF-8"),
        (b'{"version":1,"entries":["' + b"x" * (json_stream.VALUE_MAX + 1000) + b'"]}', "too large"),
    ],
)
def test_what_is_no_sound_json(text: bytes, why: str) -> None:
    pieces = iter([text[at : at + 1000] for at in range(0, len(text), 1000)])
    toc = Toc("eStargz", Units("gzip", "plain"))
    with pytest.raises(TocError, match=why):
        list(toc_entries.read_entries(lambda _: next(pieces, b""), toc, 1000))


def test_too_many_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toc_entries, "ENTRIES_MAX", 3)
    refused(stargz_layer(SMALL), "more than 3 entries")


def test_a_large_toc(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = stargz_layer(SMALL), chunked_layer(SMALL), stargz_layer(SMALL, zstd=True)
    for most in (10, 600):  # less than it has compressed, and less than the JSON has
        monkeypatch.setattr(toc_entries, "TOC_MAX", most)
        for layer in layers:
            refused(layer, f"at most {most} are taken")


@pytest.mark.parametrize("footer", ["external", "none", "cut", "behind", "odd"])
def test_a_footer_that_is_none(footer: str) -> None:
    layer = stargz_layer(SMALL, footer="external" if footer == "external" else "new")
    blob = layer.blob
    if footer == "none":
        blob = blob[:-51] + bytes(51)
    elif footer == "cut":
        blob = blob[:40]
    elif footer == "behind":
        blob = blob.replace(blob[-35:-19], b"%016x" % len(blob))
    elif footer == "odd":
        blob = blob.replace(blob[-35:-19], b"not hexadecimal.")
    refused(layer._replace(blob=blob), "another image" if footer == "external" else "is missing|outside")


@pytest.mark.parametrize("zstd", [False, True])
def test_a_toc_with_another_digest(zstd: bool) -> None:
    layer = stargz_layer(SMALL, zstd=zstd)
    refused(layer._replace(annotations={**layer.annotations, TOC_DIGEST: HASH}), "another digest")
    containers = chunked_layer(SMALL)
    refused(
        containers._replace(annotations={**containers.annotations, f"{CONTAINERS}manifest-checksum": HASH}),
        "another digest",
    )


def test_a_digest_that_is_none() -> None:
    layer = stargz_layer(SMALL)
    for text in ("", "sha256:", "sha512:" + "0" * 128, "sha256:" + "g" * 64):
        refused(layer._replace(annotations={TOC_DIGEST: text}), "SHA-256")


@pytest.mark.parametrize(
    "position",
    [
        *("", "1:2:3", "1:2:3:4:5", "-1:2:3:1", "a:b:c:1", "0:5:5:1", "99999999:5:5:1", "8:0:5:1"),
        *(f"8:5:{10**17}:1", "8:9:9:2"),
    ],
)
def test_a_place_that_is_none(position: str) -> None:
    layer = chunked_layer(SMALL)
    annotations = {**layer.annotations, f"{CONTAINERS}manifest-position": position}
    refused(layer._replace(annotations=annotations), "place|outside|at most|unknown type")


def test_a_plain_size_that_is_not_true() -> None:
    for layer, prefix in ((chunked_layer(SMALL), CONTAINERS), (stargz_layer(SMALL, zstd=True), STARGZ)):
        offset, length, plain, _ = layer.annotations[f"{prefix}manifest-position"].split(":")
        for wrong in (int(plain) - 1, int(plain) + 1):
            annotations = {**layer.annotations, f"{prefix}manifest-position": f"{offset}:{length}:{wrong}:1"}
            refused(layer._replace(annotations=annotations), "another size")


def test_a_small_toc_that_decompresses_to_much() -> None:
    """It is never decompressed further than is said of it."""
    layer = chunked_layer(SMALL, edit=lambda toc: toc.update(more=[0] * 10_000_000))
    offset, length, _, _ = layer.annotations[f"{CONTAINERS}manifest-position"].split(":")
    annotations = {**layer.annotations, f"{CONTAINERS}manifest-position": f"{offset}:{length}:5000:1"}
    refused(layer._replace(annotations=annotations), "another size")


def test_two_kinds_of_toc() -> None:
    layer = chunked_layer(SMALL)
    refused(layer._replace(annotations={**layer.annotations, TOC_DIGEST: HASH}), "two of them")
    both = {**layer.annotations, f"{STARGZ}manifest-checksum": HASH}
    refused(layer._replace(annotations=both), "two things")


@pytest.mark.parametrize(
    ("media_type", "make"), [(TAR, stargz_layer), (TAR, chunked_layer), (GZIP, chunked_layer), ("x/y", stargz_layer)]
)
def test_a_toc_that_the_compression_cannot_have(media_type: str, make: Callable[[bytes], LazyLayer]) -> None:
    refused(make(SMALL)._replace(media_type=media_type), "cannot have")


def test_a_layer_that_comes_short() -> None:
    for layer in (stargz_layer(SMALL), chunked_layer(SMALL)):
        with pytest.raises(TocError, match="read whole"):
            formats.read_toc(layer.media_type, layer.annotations, len(layer.blob), lambda offset, length: b"x")


def test_a_toc_under_another_name_or_damaged() -> None:
    layer = stargz_layer(SMALL)
    offset = int(layer.blob[-35:-19], 16)
    for stored in (stargz_layer(SMALL).blob[:20], b"no gzip at all", json.dumps({}).encode()):
        blob = layer.blob[:offset] + stored + layer.blob[-51:]
        refused(layer._replace(blob=blob), "tar archive|decompressed")
    chunked = chunked_layer(SMALL)
    stored = b"no zstd"
    frame = struct.pack("<II", 0x184D2A50, len(stored)) + stored
    annotations = {
        f"{CONTAINERS}manifest-checksum": f"sha256:{hashlib.sha256(stored).hexdigest()}",
        f"{CONTAINERS}manifest-position": f"{len(chunked.blob) + 8}:{len(stored)}:7:1",
    }
    refused(LazyLayer(chunked.blob + frame, ZSTD, annotations), "JSON|decompressed")
