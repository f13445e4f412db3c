"""`pyerofs ls`, `cat`, `cp`, `tree`, `find`, `diff`, `export`, `tags`: without root, and what they say of mistakes."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.support.docpages import blocks
from tests.support.fakeregistry import Exchange, FakeRegistry
from tests.support.images import Images, Layer, Published, push_image
from tests.support.ordinary import Layout, file
from tests.support.realregistry import LoggingRegistry
from tests.support.scene import Done, Scene
from tests.support.stacks import small, write
from tests.support.tarballs import archive
from tests.support.trees import Tree, make_image, survey

NOBODY = ("unshare", "--user")  # uid 65534, without any capability


def run(scene: Scene, *arguments: str | Path, prefix: tuple[str, ...] = ()) -> Done:
    return scene.run(*arguments, env={"XDG_CACHE_HOME": str(scene.directory / "xdg"), "TZ": "UTC"}, prefix=prefix)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small one, always the same."""
    root = tmp_path_factory.mktemp("files") / "tree"
    for name in ("etc/conf", "etc/hosts", "usr/bin/tool"):
        write(root / name, name.encode() + b"\n")
    (root / "bin").symlink_to("usr/bin")
    os.link(root / "etc/conf", root / "etc/same")
    (root / "usr/bin/tool").chmod(0o755)
    os.setxattr(root / "etc/conf", "user.note", b"of conf")
    for number, path in enumerate([root, *sorted(root.rglob("*"))]):
        os.utime(path, ns=(0, (1_600_000_000 + 60 * number) * 10**9), follow_symlinks=False)
    return make_image(root, root.parent / "image")


def test_every_command_of_the_page(scene: Scene, published: Published, registry: LoggingRegistry) -> None:
    """docs/files.md, by a user without rights."""

    def put(text: str) -> str:
        text = text.replace("quay.io/org/app:1.0", published.plain).replace("quay.io/org/other:1.0", published.two)
        return text.replace("quay.io/org/app", published.plain.rpartition(":")[0])

    python = scene.argv()[0]
    for number, block in enumerate(blocks("files.md")):
        script = scene.directory / f"{number}.{block.kind}"
        script.write_text(put(block.text))
        command = [python, str(script)] if block.kind == "python" else ["bash", "-eu", str(script)]
        path = f"{Path(python).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            [*NOBODY, *command], cwd=scene.directory, capture_output=True, text=True,
            env={**scene.environment, "PATH": path, "XDG_CACHE_HOME": str(scene.directory / "xdg")},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), block.text + done.stderr
        assert done.stdout.strip() or "diff" in block.text
    assert (scene.directory / "hello").read_bytes() == b"hello, world\n"
    assert (scene.directory / "copy/dir/here").read_bytes() == b"deep"


# Showing


def test_ls(scene: Scene, image: Path) -> None:
    assert run(scene, "ls", image, prefix=NOBODY) == Done(0, "bin\netc\nusr\n", "")
    assert run(scene, "ls", image, "etc/h*", "/usr") == Done(0, "/etc/hosts\n\n/usr:\nbin\n", "")
    assert run(scene, "ls", "-d", image, "/etc") == Done(0, "/etc\n", "")
    lines = run(scene, "ls", "-lR", image).out.splitlines()
    assert lines[:3] == [
        "/:",
        "lrwxrwxrwx   1     0     0            7 2020-09-13 12:27 bin -> usr/bin",
        "drwxr-xr-x   2     0     0           76 2020-09-13 12:28 etc",
    ]
    assert "-rwxr-xr-x   1     0     0           13 2020-09-13 12:34 tool" in lines


def test_tree_and_find(scene: Scene, image: Path) -> None:
    more, last = "\u251c\u2500\u2500 ", "\u2514\u2500\u2500 "
    shown = f"/\n{more}bin -> usr/bin\n{more}etc\n{last}usr\n\n2 directories, 1 files\n"
    assert run(scene, "tree", "-L", "1", image).out == shown
    assert run(scene, "tree", image, "usr").out.splitlines()[1:3] == [
        "\u2514\u2500\u2500 bin", "    \u2514\u2500\u2500 tool"
    ]  # fmt: skip
    assert run(scene, "find", image, "-name", "*o*", "-type", "f").out == "/etc/conf\n/etc/hosts\n/usr/bin/tool\n"
    assert run(scene, "find", image, "-type", "l").out == "/bin\n"


# Giving


def test_cat(scene: Scene, image: Path) -> None:
    assert run(scene, "cat", image, "bin/tool", "etc/conf", prefix=NOBODY).out == "usr/bin/tool\netc/conf\n"


def test_cp_of_everything_is_the_tree(scene: Scene, tree: Tree, images: Images) -> None:
    assert run(scene, "cp", "-a", images.plain, "/", scene.directory / "copy") == Done(0, "", "")
    expected = {name: entry for name, entry in tree.entries.items() if entry.kind != "s"}  # mknod has made that too
    found = survey(scene.directory / "copy")
    assert sorted(found) == sorted(tree.entries)
    assert {name: found[name] for name in expected} == expected


def test_cp_by_a_user_says_what_is_missing(scene: Scene, image: Path, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    write(root / "file", b"1")
    os.mknod(root / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    made = make_image(root, tmp_path / "devices")
    done = run(scene, "cp", "-a", made, "/", scene.directory / "copy", prefix=NOBODY)
    assert done == Done(0, "", "pyerofs: left out, for want of permission: 1 devices\n")
    assert os.listdir(scene.directory / "copy") == ["file"]


def test_cp_writes_through_nothing(scene: Scene, image: Path) -> None:
    """A link that is there already is no way out of the destination."""
    outside, copy = scene.directory / "outside", scene.directory / "copy"
    outside.mkdir()
    copy.mkdir()
    (copy / "etc").symlink_to(outside)
    done = run(scene, "cp", "-a", image, "/etc", copy)
    assert (done.status, done.error) == (2, f"{copy}/etc: File exists")
    assert os.listdir(outside) == []


def test_export_is_the_tree(scene: Scene, tree: Tree, images: Images) -> None:
    assert run(scene, "export", images.plain, "all.tar", prefix=NOBODY) == Done(0, "", "")
    out = scene.directory / "out"
    out.mkdir()
    unpack = ["tar", "-xpf", str(scene.directory / "all.tar"), "-C", str(out), "--xattrs", "--xattrs-include=*"]
    subprocess.run(unpack, check=True)
    found, expected = survey(out), {name: each for name, each in tree.entries.items() if each.kind != "s"}
    assert sorted(found) == sorted(expected)
    plain = [{name: each._replace(xattrs={}) for name, each in of.items()} for of in (found, expected)]
    assert plain[0] == plain[1]
    assert {name for name in found if found[name].xattrs} == {name for name in expected if expected[name].xattrs}
    with tarfile.open(scene.directory / "all.tar") as tar:
        assert tar.getmember("./xattrs").pax_headers["SCHILY.xattr.user.short"] == "1"


def test_an_ordinary_image_too(scene: Scene) -> None:
    layout = Layout(scene.directory / "layout")
    name = layout.tag(layout.image([archive(file("one", b"1")), archive(file("two", b"22"))]), "app")
    done = run(scene, "ls", name, prefix=NOBODY)
    assert (done.status, done.out) == (0, "one\ntwo\n")
    assert run(scene, "cat", name, "two", prefix=NOBODY) == Done(0, "22", "")


# Comparing


def test_diff(scene: Scene, registry: LoggingRegistry, tmp_path: Path) -> None:
    one = {"same": b"1" * 9000, "content": b"1", "size": b"1", "gone": b"", "dir/inner": b""}
    two = {"same": b"1" * 9000, "content": b"2", "size": b"11", "new": b"", "dir/other": b""}
    names = []
    for number, files in enumerate((one, two)):
        tag = f"diff{number}"
        push_image(registry, "app", tag, [small(tmp_path, tag, files)])
        names.append(f"{registry.host}/app:{tag}")
    done = run(scene, "diff", *names)
    assert (done.status, done.err) == (1, "")
    assert done.out.splitlines() == [
        "M /content (content)", "D /dir/inner", "A /dir/other", "D /gone", "A /new", "M /size (size 1 -> 2)"
    ]  # fmt: skip
    assert run(scene, "diff", names[0], names[0]) == Done(0, "", "")


# Tags


def test_tags(scene: Scene, registry: LoggingRegistry, published: Published, image: Path) -> None:
    push_image(registry, "tagged", "one", [Layer(image.read_bytes())])
    push_image(registry, "tagged", "two", [Layer(image.read_bytes())])
    assert run(scene, "tags", f"{registry.host}/tagged", prefix=NOBODY) == Done(0, "one\ntwo\n", "")
    done = run(scene, "tags", f"{registry.host}/none")
    assert done.status == 32 and "404" in done.error


def test_tags_of_several_pages(scene: Scene, fake: FakeRegistry) -> None:
    def answer(exchange: Exchange) -> None:
        last = "last=b" in exchange.path
        exchange.send_response(200)
        body = b'{"tags": ["c"]}' if last else b'{"tags": ["a", "b"]}'
        if not last:
            exchange.send_header("Link", '</v2/app/tags/list?n=1000&last=b>; rel="next"')
        exchange.send_header("Content-Length", str(len(body)))
        exchange.end_headers()
        exchange.wfile.write(body)

    fake.default = answer
    assert run(scene, "tags", f"{fake.host}/app").out == "a\nb\nc\n"


# Mistakes


@pytest.mark.parametrize(("arguments", "said"), [
    (["ls", "IMAGE", "nope"], "nope: No such file or directory"),
    (["cat", "IMAGE", "etc"], "etc: Is a directory"),
    (["cat", "IMAGE", "etc/conf/x"], "etc/conf/x: Not a directory"),
    (["cp", "IMAGE", "etc", "."], "etc is a directory: `cp -a` copies it"),
    (["cp", "IMAGE", "etc/conf", "etc/hosts", "nowhere"], "nowhere is not a directory, and 2 files are to go there"),
    (["diff", "IMAGE", "IMAGE", "/nope"], "/nope: No such file or directory"),
    (["tags", "docker-archive:IMAGE"], "tags are listed of a repository, or of oci:DIR"),
])  # fmt: skip
def test_mistakes_are_one_line(scene: Scene, image: Path, arguments: list[str], said: str) -> None:
    shutil.copy(image, scene.directory / "IMAGE")
    done = run(scene, *(each if each != "IMAGE" else str(image) for each in arguments))
    assert (done.status, said in done.error) == (1, True)
