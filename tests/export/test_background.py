"""cache.max: the cache stays within its limit, and no mount fails for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyerofs.cache import directory as cache_directory
from pyerofs.errors import UnavailableError
from pyerofs.export import background
from tests.support.blobs import Rig
from tests.support.fakeregistry import FakeRegistry
from tests.support.scene import until

SIZE = 2 << 20


@pytest.fixture
def rig(fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(background, "EVICT_DELAY", 0.001)
    return Rig(fake, tmp_path)


def read(rig: Rig, seed: int, options: str = "oci=0") -> Path:
    reference, data = rig.publish(SIZE, seed)
    with rig.open(reference, options) as blob:
        assert blob.read() == data
    return rig.entry(data)


def test_without_a_limit_everything_stays(rig: Rig) -> None:
    assert all(path.exists() for path in [read(rig, seed) for seed in range(1, 6)])


def test_an_opening_makes_room(rig: Rig) -> None:
    """Also one that fetches nothing."""
    paths = [read(rig, seed) for seed in range(1, 5)]
    reference, _ = rig.publish(SIZE, 4)
    with rig.open(reference, "cache.max=5M"):
        assert [path.exists() for path in paths] == [False, False, True, True]
    assert rig.log == []


def test_what_is_fetched_makes_room(rig: Rig) -> None:
    paths = [read(rig, seed) for seed in range(1, 3)]
    reference, data = rig.publish(SIZE, 3)
    with rig.open(reference, "cache.max=5M") as blob:
        assert all(path.exists() for path in paths)
        assert blob.read() == data
        until(lambda: not paths[0].exists(), "evicted")
        assert paths[1].exists() and rig.entry(data).exists()
    assert rig.log == []


def test_what_is_in_use_stays_and_is_said_once(rig: Rig) -> None:
    first, first_data = rig.publish(SIZE, 1)
    second, second_data = rig.publish(SIZE, 2)
    with rig.open(first) as one, rig.open(second, "cache.max=1M") as other:
        assert one.read() == first_data
        assert other.read() == second_data
        until(lambda: rig.log, "that it is said")
        assert one.pread(10, 0) == first_data[:10]
    (line,) = rig.log
    assert re.fullmatch(r"the cache is above its limit .*: [1-4]\.[0-9] MiB are in use, 1\.0 MiB are allowed", line)
    read(rig, 3, "cache.max=100M")
    assert rig.entry(first_data).exists()


def test_a_share_of_the_disk(rig: Rig) -> None:
    path = read(rig, 1)
    read(rig, 2, "cache.max=100%")
    assert path.exists()


def test_a_cache_that_cannot_be_kept_small_is_a_line(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> object:
        raise UnavailableError("cache directory /c: Input/output error")

    monkeypatch.setattr(cache_directory, "evict", fail)
    read(rig, 1, "cache.max=1M")
    assert rig.log[0] == "cannot make room: cache directory /c: Input/output error"
