"""Filling, over a registry: everything comes once and in order, behind every read, whatever goes wrong meanwhile."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from pyerofs.core import GRANULE, Store
from pyerofs.export import fill
from pyerofs.export.base import Export
from pyerofs.export.file import BlobFile
from pyerofs.export.fill import RUN, RUN_MIN, Bucket, Filler
from tests.support.blobs import Rig
from tests.support.fakeregistry import LIMIT, Behaviour, Exchange, FakeRegistry, stall, status
from tests.support.scene import until

SIZE = 9_000_001


@pytest.fixture
def rig(fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(fill, "QUIET", 0.001)
    monkeypatch.setattr(fill, "PAUSE_FIRST", 0.001)
    return Rig(fake, tmp_path)


def export_of(blob: BlobFile) -> Export:
    return blob._export


def filled(blob: BlobFile) -> None:
    until(lambda: export_of(blob).store.stats().present == blob.size, "filled")


def paused(release: threading.Event, after: int, reached: threading.Event) -> Behaviour:
    """The right answer, the rest of which comes when `release` is set."""

    def behave(exchange: Exchange) -> None:
        first, end = exchange.range
        exchange.partial(exchange.blob[first : first + after], length=end - first)
        exchange.wfile.flush()
        reached.set()
        release.wait(LIMIT)
        exchange.wfile.write(exchange.blob[first + after : end])

    return behave


@pytest.mark.parametrize("mode", ["idle", "full"])
def test_everything_comes_once_and_in_order(rig: Rig, mode: str) -> None:
    reference, data = rig.publish(SIZE)
    with rig.open(reference, f"oci.fill={mode}") as blob:
        filled(blob)
        ends = [0]
        for first, last in rig.ranges:
            assert first == ends[-1] and last - first < RUN
            ends.append(last + 1)
        assert ends[-1] == SIZE
        until(lambda: export_of(blob).verification == "verified", "verified")
        assert blob.read() == data
    assert rig.log == []


def test_without_it_nothing_comes_by_itself(rig: Rig) -> None:
    reference, data = rig.publish(SIZE)
    with rig.open(reference) as blob:
        assert blob.pread(10, 5_000_000) == data[5_000_000:5_000_010]
        assert "pyerofs-fill" not in [thread.name for thread in threading.enumerate()]
    assert len(rig.ranges) == 1


@pytest.mark.parametrize("mode", ["idle", "full"])
def test_it_goes_on_where_another_has_ended(rig: Rig, mode: str) -> None:
    reference, data = rig.publish(SIZE)
    with rig.open(reference) as blob:
        blob.pread(GRANULE, 0)
        blob.pread(GRANULE, 4_000_000)
    before = rig.ranges
    with rig.open(reference, f"oci.fill={mode}") as blob:
        filled(blob)
        assert blob.read() == data
    asked = sum(last + 1 - first for first, last in rig.ranges)
    assert asked <= SIZE + len(before) * (64 << 10)  # a short stretch that is there may be fetched again
    assert len({first for first, _ in rig.ranges}) == len(rig.ranges)


def test_reads_while_it_is_filled(rig: Rig) -> None:
    reference, data = rig.publish(SIZE)
    with rig.open(reference, "oci.fill=full") as blob:
        for n in range(50):
            offset = n * 1_700_033 % (SIZE - 5000)
            assert blob.pread(5000, offset) == data[offset : offset + 5000]
        filled(blob)
    assert sum(last + 1 - first for first, last in rig.ranges) == SIZE


@pytest.mark.parametrize("mode", ["idle", "full"])
def test_a_read_elsewhere_does_not_wait_for_it(rig: Rig, mode: str) -> None:
    reference, data = rig.publish(SIZE)
    release, reached = threading.Event(), threading.Event()
    rig.fake.script(stall(release, after=100_000, reached=reached))
    with rig.open(reference, f"oci.fill={mode}") as blob:
        assert reached.wait(LIMIT)
        assert blob.pread(5000, 8_000_000) == data[8_000_000:8_005_000]
        assert blob.pread(5000, 0) == data[:5000]  # has come with it
        release.set()
        filled(blob)
        assert blob.read() == data


def test_in_quiet_times_it_gives_way(rig: Rig) -> None:
    """As soon as more of it comes while a read waits for something else; what has come is kept."""
    reference, data = rig.publish(SIZE)
    go_on, filling, answer, asked = (threading.Event() for _ in range(4))
    rig.fake.script(paused(go_on, 200_000, filling), paused(answer, 0, asked))
    with rig.open(reference, "oci.fill=idle") as blob:
        assert filling.wait(LIMIT)
        reader = threading.Thread(target=blob.pread, args=(10, 8_000_000))
        reader.start()
        assert asked.wait(LIMIT)
        go_on.set()
        store = export_of(blob).store
        until(lambda: store.stats().flights == 1, "the filling has given way")
        assert store.stats().parked == 1
        assert 0 < store.stats().present < RUN
        assert len(rig.ranges) == 2
        answer.set()
        reader.join()
        filled(blob)
        assert blob.read() == data
    assert sum(last + 1 - first for first, last in rig.ranges) < SIZE + RUN


@pytest.mark.parametrize("behaviour", [status(503), status(404), status(401)])
def test_a_failure_is_a_line_and_a_pause(rig: Rig, behaviour: Behaviour) -> None:
    reference, data = rig.publish(SIZE)
    rig.fake.script(*[behaviour] * 3)
    with rig.open(reference, "oci.fill=full") as blob:
        filled(blob)
        assert blob.read() == data
    first, second = rig.log
    assert first.startswith("filling the cache: ") and first.endswith("; retrying from time to time")
    assert second == "filling the cache has resumed"


def test_a_cache_that_cannot_be_written(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, data = rig.publish(SIZE)
    real = Store.land
    failures = [OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)) for _ in range(3)]

    def land(store: Store, run: int, offset: int, piece: bytes) -> bool:
        if failures:
            raise failures.pop()
        return real(store, run, offset, piece)

    monkeypatch.setattr(Store, "land", land)
    with rig.open(reference, "oci.fill=full") as blob:
        filled(blob)
        assert blob.read() == data
    assert "cannot write to the cache: Disk quota exceeded" in rig.log[0]
    assert len(rig.log) == 2


def test_it_ends_with_the_export_although_the_network_is_dead(rig: Rig) -> None:
    reference, _ = rig.publish(SIZE)
    release, reached = threading.Event(), threading.Event()
    rig.fake.script(stall(release, reached=reached))
    with rig.open(reference, "oci.fill=full"):
        assert reached.wait(LIMIT)
    assert "pyerofs-fill" not in [thread.name for thread in threading.enumerate()]
    assert rig.log == []
    release.set()


def test_it_ends_quietly_when_the_store_is_stopped_under_it(rig: Rig) -> None:
    reference, _ = rig.publish(SIZE)
    go_on, reached = threading.Event(), threading.Event()
    rig.fake.script(paused(go_on, 100_000, reached))
    with rig.open(reference, "oci.fill=full") as blob:
        assert reached.wait(LIMIT)
        export_of(blob).store.stop()
        go_on.set()
        until(lambda: "pyerofs-fill" not in [thread.name for thread in threading.enumerate()], "its end")
    assert rig.log == []


def test_it_ends_with_the_export_although_it_pauses(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill, "PAUSE_FIRST", 3600.0)
    monkeypatch.setattr(fill, "PAUSE_MAX", 3600.0)
    reference, _ = rig.publish(SIZE)
    rig.fake.default = status(503)
    with rig.open(reference, "oci.fill=full"):
        until(lambda: rig.log, "it has failed")


def test_a_complete_blob_wakes_nobody(rig: Rig) -> None:
    """The thread that fills waits in the kernel for a word of memory, without a timeout (proc(5), syscall)."""
    reference, _ = rig.publish(SIZE)
    with rig.open(reference, "oci.fill=idle") as blob:
        filled(blob)
        thread = next(thread for thread in threading.enumerate() if thread.name == "pyerofs-fill")

        def timeout_of_its_futex() -> str:
            fields = Path(f"/proc/self/task/{thread.native_id}/syscall").read_text().split()
            return fields[4] if len(fields) == 9 and fields[0] in ("202", "98") else "?"  # x86-64, arm64

        until(lambda: timeout_of_its_futex() == "0x0", "it sleeps")


# The rate


def test_bucket() -> None:
    now = 100.0
    bucket = Bucket(1000, lambda: now)
    assert bucket.spent(1500) == 1.5
    now += 1.5
    assert bucket.spent(1000) == 1.0
    now += 0.25  # it was woken too early
    assert bucket.spent(1000) == 1.75
    now += 3600.0  # of an hour in which there was nothing to do, one second is made up for
    assert bucket.spent(1000) == 0.0
    assert bucket.spent(1000) == 1.0


@pytest.mark.parametrize(("rate", "length"), [
    (None, RUN), (1 << 30, RUN), (1 << 20, 1 << 20), (1_000_000, 999_424), (1, RUN_MIN),
])  # fmt: skip
def test_runs_are_short_where_the_rate_is_low(rate: int | None, length: int) -> None:
    filler = Filler(None, None, idle=True, rate=rate, landed=lambda: None, log=print)  # type: ignore[arg-type]  # a fake
    assert filler._length == length


def test_the_rate_is_kept(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that stands still and pauses that are only noted, each is what all so far should have taken."""
    monkeypatch.setattr(fill, "Bucket", lambda rate: Bucket(rate, lambda: 0.0))
    reference, _ = rig.publish(SIZE)
    pauses: list[float] = []
    with rig.open(reference) as blob:
        export = export_of(blob)
        filler = Filler(
            export.store,
            export.source,  # type: ignore[arg-type]  # a fake
            idle=False,
            rate=1 << 20,
            landed=lambda: None,
            log=rig.log.append,
            pause=pauses.append,
        )
        filler.start()
        filled(blob)
        until(lambda: len(pauses) == -(-SIZE // (1 << 20)), "the last pause")
        export.store.stop()
        filler.stop()
    assert pauses == pytest.approx([min(n << 20, SIZE) / (1 << 20) for n in range(1, len(pauses) + 1)])
