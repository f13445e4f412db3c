"""Kept manifests: with the registry away, what an image was is still known, and the user is told that it is old."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyerofs.cache.manifests import CachedManifest, ManifestCache
from pyerofs.config.options import ReadOptions, parse_oci_options
from pyerofs.errors import NotFoundError, RegistryError
from pyerofs.http.curlerror import TransportError
from pyerofs.oci.location import Location
from pyerofs.registry.client import ManifestResponse
from pyerofs.source.open import open_layer
from tests.support.blobs import Rig
from tests.support.fakeregistry import Exchange, FakeRegistry, reset
from tests.support.images import FakePusher, Layer, push_image, push_index

IMAGE = "registry.example/app"
BODY = b'{"schemaVersion": 2}'
DIGEST = "sha256:c5d902c53b4afcf32ad746fd9d696431650d3fbe8f7b10ca10519543fefd772c"
Enough = Callable[[RegistryError], bool]


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def kept(tmp_path: Path, log: list[str]) -> ManifestCache:
    return ManifestCache(str(tmp_path / "cache"), log.append)


def answer(_: Enough) -> ManifestResponse:
    return ManifestResponse(BODY, "text/plain")


def never(_: Enough) -> ManifestResponse:
    pytest.fail("the registry is asked")


def fails(error: RegistryError, enough: bool) -> Callable[[Enough], ManifestResponse]:
    """Asks a registry that has this error. `enough`: whether it is to be asked no more after it."""

    def ask(is_enough: Enough) -> ManifestResponse:
        assert is_enough(error) is enough
        raise error

    return ask


PASSING = RegistryError("503", temporary=True)
REFUSED = TransportError("connection refused", "connect", temporary=True)
UNKNOWN = TransportError("cannot resolve", "resolve", temporary=True)


def file_of(kept: ManifestCache, what: str) -> Path:
    return Path(kept._path(IMAGE, what))


def test_a_tag_is_asked_for_each_time(kept: ManifestCache, log: list[str]) -> None:
    document = kept.get(IMAGE, "1", answer)
    assert (document.body, document.media_type, document.digest) == (BODY, "text/plain", DIGEST)
    newer = kept.get(IMAGE, "1", lambda _: ManifestResponse(b"{}", ""))
    assert newer.body == b"{}"
    assert kept.find(IMAGE, "1") == newer._replace(time=file_of(kept, "1").stat().st_mtime)
    assert log == []


def test_a_digest_is_asked_for_once(kept: ManifestCache) -> None:
    kept.get(IMAGE, DIGEST, answer)
    os.utime(file_of(kept, DIGEST), (1000, 1000))
    assert kept.get(IMAGE, DIGEST, never).body == BODY
    assert file_of(kept, DIGEST).stat().st_mtime > 1000


@pytest.mark.parametrize(("error", "enough"), [(PASSING, False), (REFUSED, True), (UNKNOWN, True)])
def test_with_the_registry_away(kept: ManifestCache, log: list[str], error: RegistryError, enough: bool) -> None:
    with pytest.raises(RegistryError):
        kept.get(IMAGE, "1", fails(error, False))
    kept.get(IMAGE, "1", answer)
    now = time.time()
    os.utime(file_of(kept, "1"), (now - 7300, now - 7300))
    document = kept.get(IMAGE, "1", fails(error, enough))
    assert (document.body, document.digest) == (BODY, DIGEST)
    assert log == [f"{error}; continuing with what {IMAGE}:1 was 2 hours ago, {DIGEST}"]
    assert now - file_of(kept, "1").stat().st_mtime > 7000


def test_a_final_answer_is_the_registry_s_word(kept: ManifestCache, log: list[str]) -> None:
    kept.get(IMAGE, "1", answer)
    with pytest.raises(NotFoundError):
        kept.get(IMAGE, "1", fails(NotFoundError("gone"), False))
    assert log == []


def test_each_image_has_its_own(kept: ManifestCache) -> None:
    kept.get(IMAGE, "1", answer)
    for image, what in ((IMAGE, "2"), ("registry.example/other", "1"), (f"{IMAGE} ", "1")):
        assert kept.find(image, what) is None


def cut(data: bytes) -> bytes:
    return data[:-1]


def headless(data: bytes) -> bytes:
    return data.partition(b"\n")[2]


def another_image(data: bytes) -> bytes:
    return data.replace(b"example/app", b"example/ape")


def another_digest(data: bytes) -> bytes:
    return data.replace(DIGEST.encode(), b"sha256:" + b"0" * 64)


def a_list(data: bytes) -> bytes:
    return b"[]\n" + headless(data)


def empty(_: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [cut, headless, another_image, another_digest, a_list, empty])
@pytest.mark.parametrize("what", ["1", DIGEST])
def test_what_cannot_be_believed_is_asked_for(kept: ManifestCache, what: str, damage: Callable[[bytes], bytes]) -> None:
    kept.get(IMAGE, what, answer)
    path = file_of(kept, what)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert kept.find(IMAGE, what) is None
    with pytest.raises(RegistryError):
        kept.get(IMAGE, what, fails(PASSING, False))
    assert kept.get(IMAGE, what, answer).body == BODY
    assert path.read_bytes() == whole


def test_any_bytes_are_a_manifest_or_nothing(kept: ManifestCache) -> None:
    kept.get(IMAGE, "1", answer)
    path = file_of(kept, "1")
    whole = path.read_bytes()
    chance = random.Random(3)
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data)
        found = kept.find(IMAGE, "1")
        assert found is None or found.body == BODY


@pytest.mark.parametrize("failing", ["rename", "open"])
def test_what_cannot_be_kept_is_a_line(
    kept: ManifestCache, log: list[str], monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    kept.get(IMAGE, "0", answer)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, fail)
    assert kept.get(IMAGE, "1", answer).body == BODY
    monkeypatch.undo()
    assert log == [f"cannot store the manifest of {IMAGE} in the cache: No space left on device"]
    assert len(list(file_of(kept, "1").parent.iterdir())) == 1


def test_the_unused_are_removed(kept: ManifestCache) -> None:
    assert kept.remove_unused(1e12) == 0
    for what in ("1", "2", DIGEST):
        kept.keep(IMAGE, what, CachedManifest(BODY, "", DIGEST, 0))
    for what in ("1", DIGEST):
        os.utime(file_of(kept, what), (1000, 1000))
    assert kept.remove_unused(1000) == 0
    assert kept.remove_unused(1001) == 2
    assert kept.find(IMAGE, "2")


# In the whole of it


def chosen(reference: str, kept: ManifestCache, *options: str) -> tuple[str, int]:
    source = open_layer(Location.parse(reference), parse_oci_options(list(options)), manifests=kept)
    try:
        return source.digest, source.size
    finally:
        source.close()


PLAIN, OTHER = Layer(b"plain" * 100), Layer(b"other" * 50)


def test_an_index_whose_registry_has_gone(kept: ManifestCache, log: list[str]) -> None:
    with FakeRegistry() as fake:
        pusher = FakePusher(fake)
        amd, arm = (
            push_image(pusher, "app", None, [layer], platform=platform)
            for layer, platform in ((PLAIN, "linux/amd64"), (OTHER, "linux/arm64"))
        )
        digest = push_index(pusher, "app", "1", [amd, arm])
        by_tag, by_digest = f"{fake.host}/app:1", f"{fake.host}/app@{digest}"
        amd64, arm64 = "oci.platform=linux/amd64", "oci.platform=linux/arm64"
        for reference in (by_tag, by_digest):
            assert chosen(reference, kept, amd64) == (PLAIN.digest, 500)
        asked = len(fake.seen)
        assert asked == 3  # the index by tag and by digest, and the manifest
        assert chosen(by_digest, kept, amd64) == (PLAIN.digest, 500)
        assert len(fake.seen) == asked
    assert chosen(by_digest, kept, amd64) == (PLAIN.digest, 500)
    assert log == []
    assert chosen(by_tag, kept, amd64) == (PLAIN.digest, 500)
    assert len(log) == 1 and f"connection to {fake.host} refused; continuing with what {fake.host}/app:1 was" in log[0]
    with pytest.raises(RegistryError):
        chosen(by_tag, kept, arm64)  # its manifest has never been seen


def test_a_registry_that_breaks_off_is_asked_again_first(
    fake: FakeRegistry, kept: ManifestCache, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    push_image(FakePusher(fake), "app", "1", [PLAIN])
    reference = f"{fake.host}/app:1"
    assert chosen(reference, kept) == (PLAIN.digest, 500)

    def broken(exchange: Exchange, _: str) -> None:
        reset(exchange)

    monkeypatch.setattr(fake, "_manifest", broken)
    asked = len(fake.seen)
    assert chosen(reference, kept) == (PLAIN.digest, 500)
    assert len(fake.seen) > asked + 1
    assert len(log) == 1


def test_what_a_tag_was_by_another_way_does_not_count(kept: ManifestCache, log: list[str]) -> None:
    """Whoever is in the path of an insecure connection has named that digest, or a mirror has."""
    with FakeRegistry() as fake, FakeRegistry() as mirror:
        for each in (fake, mirror):
            push_image(FakePusher(each), "app", "1", [PLAIN])
        reference = f"{fake.host}/app:1"
        assert chosen(reference, kept, "oci.insecure") == (PLAIN.digest, 500)
        assert chosen(reference, kept, f"oci.mirror={mirror.url}") == (PLAIN.digest, 500)
    with pytest.raises(RegistryError):
        chosen(reference, kept, "oci.timeout=0.2")
    assert log == []
    assert chosen(reference, kept, "oci.insecure") == (PLAIN.digest, 500)
    assert f"continuing with what {fake.host}/app (insecure):1 was" in log[0]


def test_without_kept_manifests_nothing_changes(tmp_path: Path) -> None:
    with FakeRegistry() as fake:
        push_image(FakePusher(fake), "app", "1", [PLAIN])
        open_layer(Location.parse(f"{fake.host}/app:1"), ReadOptions(cache=str(tmp_path / "cache"))).close()
        assert not (tmp_path / "cache").exists()
    with pytest.raises(RegistryError):
        open_layer(Location.parse(f"{fake.host}/app:1"), ReadOptions(cache=str(tmp_path / "cache"), timeout=0.2))


def test_a_whole_blob_is_read_with_the_registry_away(tmp_path: Path) -> None:
    with FakeRegistry() as fake:
        rig = Rig(fake, tmp_path)
        reference, data = rig.publish(3_000_001)
        with rig.open(reference) as blob:
            assert blob.read() == data
    with rig.open(reference) as blob:
        assert blob.read() == data
    assert len(rig.log) == 1 and "continuing with what" in rig.log[0]
