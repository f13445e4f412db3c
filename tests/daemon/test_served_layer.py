"""Parts of a mount: what is done for several at the same time, and what is checked before anything is attached."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pyerofs.config.options import MountOptions, ReadOptions
from pyerofs.context import Context
from pyerofs.daemon.served_layer import AT_ONCE, ServedLayer, for_each
from pyerofs.errors import ImageError, MountError
from pyerofs.export.base import Export
from pyerofs.source.local import LocalSource
from tests.support.stacks import small, with_device


def test_each_is_done_once() -> None:
    for count in (0, 1, 2, 100):
        done: list[int] = []
        for_each(range(count), done.append)
        assert sorted(done) == list(range(count))


def test_several_at_the_same_time() -> None:
    together = threading.Barrier(AT_ONCE, timeout=30)
    for_each(range(AT_ONCE), lambda _: void(together.wait()))


def void(_: object) -> None:
    pass


def test_one_alone_is_done_by_the_caller() -> None:
    threads: list[threading.Thread] = []
    for_each([1], lambda _: threads.append(threading.current_thread()))
    assert threads == [threading.current_thread()]


def test_after_an_error_no_other_is_begun_and_those_that_run_are_waited_for() -> None:
    began: list[int] = []
    ended: list[int] = []
    together = threading.Barrier(AT_ONCE, timeout=30)

    def act(number: int) -> None:
        began.append(number)
        together.wait()
        ended.append(number)
        raise MountError("no")

    with pytest.raises(MountError, match="no"):
        for_each(range(1000), act)
    assert sorted(ended) == sorted(began) == list(range(AT_ONCE))


def part(path: Path, said: list[str], devices: list[int], role: str = "lower") -> ServedLayer:
    export = Export(LocalSource(str(path)), ReadOptions(), Context(said.append))
    return ServedLayer(export, said.append, role, devices)  # type: ignore[arg-type]  # a fake


@pytest.mark.parametrize(("name", "devices", "options", "said"), [
    ("plain", [], "", ""),
    ("far", [4], "", ""),
    ("far", [], "device=/x", ""),
    ("far", [], "", "the image needs 1 more devices: give each with -o device="),
])  # fmt: skip
def test_what_is_checked(tmp_path: Path, name: str, devices: list[int], options: str, said: str) -> None:
    small(tmp_path, "plain", {"a": b"0"})
    with_device(tmp_path, "far", b"far" * 2000)
    lines: list[str] = []
    made = part(tmp_path / f"{name}.erofs", lines, devices)
    made.check(MountOptions(data=options))
    assert lines == ([said] if said else [])
    made.close()


@pytest.mark.parametrize(("name", "devices", "text"), [
    ("plain", [0], "needs 0 more devices, but the image has 1 for it (layers 0)"),
    ("far", [0, 2], "needs 1 more devices, but the image has 2 for it (layers 0, 2)"),
    ("far.blob", [], "not an EROFS image"),
    ("wide", [], "blocks of 65536 bytes, more than this kernel's pages of 4096"),
    ("cut", [], "the EROFS image is truncated"),
])  # fmt: skip
def test_what_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, devices: list[int], text: str
) -> None:
    monkeypatch.setattr(os, "sysconf", lambda _: 4096)
    plain = small(tmp_path, "plain", {"a": b"0"}).data
    with_device(tmp_path, "far", b"far" * 2000)
    (tmp_path / "wide.erofs").write_bytes(plain[: 1024 + 12] + b"\x10" + plain[1024 + 13 :])
    (tmp_path / "cut.erofs").write_bytes(plain[:-1])
    made = part(tmp_path / (name if "." in name else f"{name}.erofs"), [], devices)
    with pytest.raises(ImageError) as caught:
        made.check(MountOptions())
    assert text in str(caught.value)
    made.close()


def test_a_device_may_be_anything(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"any bytes")
    made = part(tmp_path / "blob", [], [], "device")
    made.check(MountOptions())
    made.close()
