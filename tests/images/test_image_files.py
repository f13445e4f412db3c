"""pyerofs.Image: what a mount shows, without one; lazily, by several threads, and with open()'s errors."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

import pyerofs
from pyerofs import Image
from pyerofs.errors import ImageError
from pyerofs.kernel import mountpoint
from tests.support.fakeregistry import FakeRegistry, status
from tests.support.images import FakePusher, Images, Layer, Published, push_image
from tests.support.imagesurvey import survey_image
from tests.support.ordinary import Layout, tars
from tests.support.realregistry import LoggingRegistry
from tests.support.stacks import make_stack, small, whiteout, with_data, with_device, write
from tests.support.trees import Entry, Tree, make_image, survey


def opened(source: str | Path, cache: Path, *options: str) -> Image:
    return pyerofs.Image(str(source), [f"oci.cache={cache}", *options])


def same(expected: dict[str, Entry], image: Image) -> None:
    found = survey_image(image)
    assert sorted(found) == sorted(expected)
    differing = [f"{name!r}: {expected[name]} became {found[name]}" for name in found if found[name] != expected[name]]
    assert not differing, "\n".join(differing[:3])


# What it shows


def test_a_file_is_the_whole_tree(tree: Tree, images: Images) -> None:
    with Image(str(images.plain)) as image:
        same(tree.entries, image)


@pytest.mark.parametrize("options", [
    ["--chunksize=4096"], ["-Eforce-inode-extended"], ["-Eforce-inode-compact", "--all-root"],
    ["--chunksize=65536", "-Eforce-chunk-indexes"], ["-x-1"], ["-Enoinline_data"],
])  # fmt: skip
def test_images_as_mkfs_makes_them(tree: Tree, tmp_path: Path, options: list[str]) -> None:
    """As long as nothing is compressed: what the kernel shows of them."""
    path, mnt = make_image(tree.root, tmp_path / "image", *options), tmp_path / "mnt"
    mnt.mkdir()
    mountpoint.mount_local(str(path), str(mnt), mountpoint.MS_RDONLY)
    try:
        with Image(str(path)) as image:
            same(survey(mnt), image)
    finally:
        mountpoint.umount(str(mnt))


def test_an_image_at_a_registry_is_read_lazily(
    tree: Tree, published: Published, registry: LoggingRegistry, images: Images, tmp_path: Path
) -> None:
    with opened(published.plain, tmp_path) as image:
        assert image.open("hello").read() == b"hello, world\n"
        assert image.listdir("sub/dir") == ["here"]
        cached = sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("data"))
        assert cached < images.plain.stat().st_size / 2
        same(tree.entries, image)


def test_a_stack_is_what_overlayfs_makes_of_it(
    work: Path, tree: Tree, registry: LoggingRegistry, tmp_path: Path
) -> None:
    stack = make_stack(tmp_path, tree.root)
    push_image(registry, "app", "image-stack", stack.layers)
    with opened(f"{registry.host}/app:image-stack", tmp_path / "cache") as image:
        same(stack.entries, image)


def test_layers_that_lend_and_devices(registry: LoggingRegistry, tmp_path: Path) -> None:
    content = os.urandom(300_000)
    layers = [*with_device(tmp_path, "of a device", content), *with_data(tmp_path, "lent", content[::-1])]
    push_image(registry, "app", "image-lent", layers)
    with opened(f"{registry.host}/app:image-lent", tmp_path / "cache") as image:
        assert image.listdir() == ["lent", "of a device"]
        assert image.read_bytes("of a device") == content
        assert image.read_bytes("lent") == content[::-1]
        assert image.xattrs("lent") == {}


def test_an_ordinary_image_is_converted_first(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    name = layout.tag(layout.image(tars()), "app")
    said: list[str] = []
    for lines in (1, 1):  # the second time nothing is converted
        with Image(name, f"oci.cache={tmp_path / 'cache'}", log=said.append) as image:
            assert image.isdir("/")
        assert len([line for line in said if "converting it into" in line]) == lines


def test_compressed_files_are_refused_by_name(tree: Tree, images: Images) -> None:
    with Image(str(images.lz4)) as image:
        assert image.stat("text").size == tree.entries["text"].size
        with pytest.raises(ImageError, match=r"compressed with lz4 inside the EROFS image.*`pyerofs mount` shows it"):
            image.open("text").read()


def test_a_renamed_directory_is_refused(registry: LoggingRegistry, tmp_path: Path) -> None:
    base = small(tmp_path, "base", {"old/file": b"1"})
    upper = tmp_path / "upper"
    write(upper / "new/other", b"2")
    os.setxattr(upper / "new", "trusted.overlay.redirect", b"old")
    whiteout(upper / "old")
    push_image(registry, "app", "renamed", [base, Layer(make_image(upper, tmp_path / "upper.erofs"))])
    with opened(f"{registry.host}/app:renamed", tmp_path / "cache") as image:
        assert image.listdir() == ["new"]
        with pytest.raises(ImageError, match="redirect"):
            image.listdir("new")


@pytest.mark.parametrize("at", range(1024, 1152, 4))
def test_a_damaged_image_is_an_error_or_none(images: Images, tmp_path: Path, at: int) -> None:
    """Whatever is wrong in its superblock: nothing but an ImageError or an OSError."""
    damaged = bytearray(images.other.read_bytes())
    damaged[at : at + 4] = b"\xfe\xff\xff\x7f"
    path = tmp_path / "damaged"
    path.write_bytes(damaged)
    try:
        with Image(str(path)) as image:
            survey_image(image)
    except (ImageError, OSError):
        pass


# Its functions


@pytest.fixture
def image(tmp_path: Path) -> Image:
    root = tmp_path / "tree"
    for name in ("usr/bin/tool", "usr/lib/libone.so.1", "usr/lib/libtwo.so.2", "etc/conf", "etc/.hidden"):
        write(root / name, name.encode())
    (root / "bin").symlink_to("usr/bin")
    (root / "lib").symlink_to("/usr/lib")
    (root / "usr/up").symlink_to("../../../etc")
    (root / "dangling").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "fifo")
    return Image(str(make_image(root, tmp_path / "image")))


@pytest.mark.parametrize(("path", "content"), [
    ("bin/tool", b"usr/bin/tool"), ("/lib/libone.so.1", b"usr/lib/libone.so.1"), ("usr/up/conf", b"etc/conf"),
    ("../../etc/conf", b"etc/conf"), ("//etc/./conf", b"etc/conf"), ("bin/../lib/libtwo.so.2", b"usr/lib/libtwo.so.2"),
])  # fmt: skip
def test_links_are_followed_within_the_image(image: Image, path: str, content: bytes) -> None:
    with image:
        assert image.read_bytes(path) == content


@pytest.mark.parametrize(("path", "code"), [
    ("nowhere", errno.ENOENT), ("dangling", errno.ENOENT), ("etc/conf/x", errno.ENOTDIR), ("etc/conf/", errno.ENOTDIR),
    ("loop", errno.ELOOP), ("etc", errno.EISDIR), ("fifo", errno.EINVAL),
])  # fmt: skip
def test_open_fails_as_open_does(image: Image, path: str, code: int) -> None:
    with image, pytest.raises(OSError) as caught:
        image.open(path)
    assert (caught.value.errno, caught.value.filename) == (code, path)


def test_the_tree_s_functions(image: Image) -> None:
    with image:
        assert image.listdir("/etc") == [".hidden", "conf"]
        assert [top for top, _, _ in image.walk("usr")] == ["usr", "usr/bin", "usr/lib"]
        assert image.readlink("bin") == "usr/bin"
        assert (image.isdir("bin"), image.isfile("bin/tool"), image.exists("dangling")) == (True, True, False)
        assert image.glob("/usr/lib/lib*.so.?") == ["/usr/lib/libone.so.1", "/usr/lib/libtwo.so.2"]
        assert image.glob("etc/*") == ["/etc/conf"]
        assert image.glob("**/conf") == ["/etc/conf"]
        assert image.glob("dangl*/x") == []


def test_a_file_is_a_seekable_one(image: Image) -> None:
    with image, image.open("etc/conf") as file:
        assert (file.seek(-4, os.SEEK_END), file.read(), file.tell()) == (4, b"conf", 8)
        file.seek(0)
        assert file.read(3) == b"etc"
    with pytest.raises(ValueError, match="closed"):
        file.read()


def test_several_threads_read_at_once(tree: Tree, published: Published, tmp_path: Path) -> None:
    with opened(published.plain, tmp_path) as image:
        expected = (tree.root / "large").read_bytes()
        with image.open_raw("large") as file:
            wrong = []

            def read(start: int) -> None:
                for at in range(start, len(expected), 8 << 20):
                    if file.pread(1 << 20, at) != expected[at : at + (1 << 20)]:
                        wrong.append(at)

            threads = [threading.Thread(target=read, args=(number << 20,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert wrong == []


def test_equal_places_have_one_identity(registry: LoggingRegistry, tmp_path: Path) -> None:
    base = small(tmp_path, "identity", {"one": b"1" * 9000, "two": b"2" * 9000, "none": b""})
    other = small(tmp_path, "identity-2", {"three": b"3"})
    for tag, layers in (("i1", [base]), ("i2", [base, other])):
        push_image(registry, "app", tag, layers)
    cache = tmp_path / "cache"
    with opened(f"{registry.host}/app:i1", cache) as first, opened(f"{registry.host}/app:i2", cache) as second:
        assert first.identity("one") == second.identity("one") != first.identity("two")
        assert first.identity("none") == second.identity("none") == ()


def test_an_image_whose_registry_fails_says_so(fake: FakeRegistry, images: Images, tmp_path: Path) -> None:
    push_image(FakePusher(fake), "app", "1", [Layer(images.plain)])
    with opened(f"{fake.host}/app:1", tmp_path) as image:
        fake.default = status(403)
        with pytest.raises(pyerofs.PyerofsError, match="403"):
            image.read_bytes("large")
