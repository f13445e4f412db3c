"""Stacking filesystems: what is seen in the end, what is seen meanwhile, and what a failure leaves."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyerofs.config.mount_flags import MS_NODEV, MS_NOSUID, MS_RDONLY
from pyerofs.errors import MountError, PyerofsError, UsageError
from pyerofs.kernel import mountpoint, overlay
from pyerofs.kernel.overlay import Lower, Upper, check_upper, mount_stack
from tests.support.needs import need_root
from tests.support.scene import until
from tests.support.stacks import small, whiteout, with_data, with_device, write
from tests.support.trees import make_image

NAME = "the name"
MS_BIND = 1 << 12


@pytest.fixture(autouse=True)
def needs() -> None:
    need_root()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """The mount point; afterwards nothing is mounted but what was before, and no descriptor is left."""
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "place").mkdir()
    files, here = len(os.listdir("/proc/self/fd")), os.getcwd()
    yield target
    assert os.listdir(tmp_path / "place") == []
    assert os.getcwd() == here
    while target.is_mount():
        mountpoint.umount(str(target))
    assert mounts_below(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == files


def mounts_below(directory: Path) -> list[mountpoint.MountInfo]:
    return [mount for mount in mountpoint.mountinfo() if mount.target.startswith(f"{directory}/")]


def image(directory: Path, name: str, files: dict[str, bytes]) -> Lower:
    small(directory, name, files)
    return Lower(str(directory / f"{name}.erofs"), name)


def stack(place: Path, layers: list[Lower], flags: int = MS_RDONLY, upper: Upper | None = None) -> mountpoint.MountInfo:
    before = mounts_below(place.parent)
    mount_stack(layers, NAME, str(place), str(place.parent / "place"), flags, upper)
    assert len(mounts_below(place.parent)) == len(before) + 1  # and nothing beside it
    found = mountpoint.find(str(place))
    assert found is not None and (found.fstype, found.source) == ("overlay", NAME)
    return found


def test_the_last_layer_is_on_top(tmp_path: Path, place: Path) -> None:
    layers = [image(tmp_path, str(n), {"all": b"%d" % n, f"only {n}": b"x", "d/" + str(n): b"y"}) for n in range(3)]
    found = stack(place, layers, MS_RDONLY | MS_NOSUID | MS_NODEV)
    assert {"ro", "nosuid", "nodev"} <= set(found.options.split(","))
    assert "ro" in found.super_options.split(",")
    assert (place / "all").read_bytes() == b"2"
    assert sorted(os.listdir(place)) == ["all", "d", "only 0", "only 1", "only 2"]
    assert sorted(os.listdir(place / "d")) == ["0", "1", "2"]
    with pytest.raises(OSError, match="Read-only"):
        (place / "new").touch()


def test_as_many_as_overlayfs_takes(tmp_path: Path, place: Path) -> None:
    """The option string of mount(2) ends at 4095 bytes, whatever the directory's name is."""
    layer = image(tmp_path, "x" * 60, {"a": b"1"})
    stack(place, [layer] * 499 + [image(tmp_path, "top", {"b": b"2"})])
    assert sorted(os.listdir(place)) == ["a", "b"]


def test_layers_that_only_lend_their_files(tmp_path: Path, place: Path) -> None:
    with_data(tmp_path, "one", b"content one" * 1000)
    with_data(tmp_path, "two", b"content two")
    layers = [
        Lower(str(tmp_path / f"{name}.{kind}.erofs"), name, names=kind == "meta")
        for name in ("one", "two")
        for kind in ("data", "meta")
    ]
    stack(place, layers)
    assert (place / "one").read_bytes() == b"content one" * 1000
    assert (place / "two").read_bytes() == b"content two"
    assert sorted(os.listdir(place)) == ["one", "two"]  # the lenders' own names are not seen


@pytest.mark.parametrize("name", ["up", "with, comma", "with:colon", "back\\slash", "x" * 250])
def test_an_upper_takes_the_changes(tmp_path: Path, place: Path, name: str) -> None:
    upper = Upper(str(tmp_path / name), str(tmp_path / "work"))
    for path in upper:
        Path(path).mkdir()
    layers = [image(tmp_path, "0", {"a": b"0", "b": b"0"})]
    found = stack(place, layers, 0, upper)
    assert "rw" in found.options.split(",")
    (place / "a").write_bytes(b"changed")
    (place / "b").unlink()
    (place / "new").mkdir()
    mountpoint.umount(str(place))
    assert sorted(os.listdir(tmp_path / name)) == ["a", "b", "new"]
    assert (tmp_path / name / "b").is_char_device()
    stack(place, layers, MS_RDONLY, upper)
    assert sorted(os.listdir(place)) == ["a", "new"]
    assert (place / "a").read_bytes() == b"changed"
    with pytest.raises(OSError, match="Read-only"):
        (place / "a").unlink()


def test_options_are_for_the_layer(tmp_path: Path, place: Path) -> None:
    layers = [image(tmp_path, str(n), {"a": b"0"}) for n in range(2)]
    stack(place, [layer._replace(data="user_xattr,cache_strategy=disabled") for layer in layers])


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_layer_that_cannot_be_mounted(tmp_path: Path, place: Path, bad: int) -> None:
    layers = [image(tmp_path, f"layer {n}", {"a": b"0"}) for n in range(3)]
    layers[bad] = layers[bad]._replace(path=str(write(tmp_path / "bad", bytes(8192))))
    with pytest.raises(PyerofsError, match=f"layer {bad}: ") as caught:
        stack(place, layers)
    assert "\n" not in str(caught.value)
    assert not place.is_mount()


def test_an_option_that_the_kernel_does_not_know(tmp_path: Path, place: Path) -> None:
    layers = [image(tmp_path, f"layer {n}", {"a": b"0"}) for n in range(2)]
    layers[1] = layers[1]._replace(data="nonsense")
    with pytest.raises(MountError, match="layer 1: the kernel refused"):
        stack(place, layers)


def test_a_stack_that_overlayfs_refuses(tmp_path: Path, place: Path) -> None:
    layers = [image(tmp_path, f"layer {n}", {"a": b"0"}) for n in range(2)]
    with pytest.raises(MountError, match=r"overlayfs refused to stack the layers: .*upperdir.*; see `dmesg`"):
        stack(place, layers, 0, Upper("/proc/sys", "/proc/tty"))


def test_a_layer_that_is_not_there(tmp_path: Path, place: Path) -> None:
    layers = [image(tmp_path, f"layer {n}", {"a": b"0"}) for n in range(2)]
    layers[1] = layers[1]._replace(path=str(tmp_path / "nothing"))
    with pytest.raises(MountError, match=f"cannot mount {tmp_path}/nothing: No such file"):
        stack(place, layers)


def test_what_shows_the_images_stays_busy(tmp_path: Path, place: Path) -> None:
    """Else whoever mounted it there would take it for unused."""
    layers = [image(tmp_path, f"layer {n}", {"a": b"0"}) for n in range(2)]
    shown = tmp_path / "shown"
    shown.mkdir()
    mountpoint.mount(str(tmp_path), str(shown), "", MS_BIND)
    try:
        stack(place, [layer._replace(path=str(shown / Path(layer.path).name)) for layer in layers])
        with pytest.raises(MountError, match="busy"):
            mountpoint.umount(str(shown))
        mountpoint.umount(str(place))
        until(lambda: free(shown), "that the layers have gone, which the kernel does after umount2(2)")
    finally:
        subprocess.run(["umount", "-lq", shown], check=False)


def free(mounted: Path) -> bool:
    with contextlib.suppress(MountError):
        mountpoint.umount(str(mounted))
        return True
    return False


def test_a_layer_with_devices(tmp_path: Path, place: Path) -> None:
    with_device(tmp_path, "far", b"far away" * 1000)
    far = Lower(str(tmp_path / "far.erofs"), "far", devices=[str(tmp_path / "far.blob")])
    stack(place, [far, image(tmp_path, "near", {"near": b"here"})])
    assert (place / "far").read_bytes() == b"far away" * 1000
    assert (place / "near").read_bytes() == b"here"


def test_a_target_that_has_gone(tmp_path: Path, place: Path) -> None:
    layers = [image(tmp_path, f"layer {n}", {"a": b"0"}) for n in range(2)]
    place.rmdir()
    with pytest.raises(MountError, match=f"cannot mount on {place}: No such file"):
        mount_stack(layers, NAME, str(place), str(tmp_path / "place"), MS_RDONLY)


@pytest.mark.parametrize("before", [True, False])
def test_interrupted(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
    """Whether it comes while the thread works or when it has just ended: what the thread has made goes with it."""
    layers = [image(tmp_path, f"layer {n}", {"a": b"0"}) for n in range(2)]
    builders: list[overlay._Builder] = []
    join = overlay._Builder.join

    def interrupted(self: overlay._Builder, timeout: float | None = None) -> None:
        builders.append(self)
        if not before:
            join(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(overlay._Builder, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stack(place, layers)
    join(builders[0])
    assert not place.is_mount()


def test_an_upper_and_its_work(tmp_path: Path) -> None:
    for name in ("up", "work", "up/inside"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("up")
    up = str(tmp_path / "up")
    check_upper(Upper(up, str(tmp_path / "work")))
    for upper, text in (
        (Upper(str(tmp_path / "none"), up), "oci.upperdir=.*none: No such file"),
        (Upper(up, str(tmp_path / "none")), "oci.workdir=.*none: No such file"),
        (Upper(up, str(tmp_path / "file")), "oci.workdir=.*file: it is not a directory"),
        (Upper(up, up), "must not lie in one another"),
        (Upper(up, f"{up}/inside"), "must not lie in one another"),
        (Upper(f"{up}/inside", up), "must not lie in one another"),
        (Upper(up, str(tmp_path / "link")), "must not lie in one another"),
        (Upper(up, "/proc"), "must be on one filesystem"),
    ):
        with pytest.raises(UsageError, match=text):
            check_upper(upper)


def test_whiteouts(tmp_path: Path, place: Path) -> None:
    low = image(tmp_path, "low", {"gone": b"0", "stays": b"0", "d/x": b"0"})
    tree = tmp_path / "top"
    whiteout(tree / "gone")
    whiteout(tree / "d")
    make_image(tree, tmp_path / "top.erofs")
    stack(place, [low, Lower(str(tmp_path / "top.erofs"), "top")])
    assert os.listdir(place) == ["stays"]
