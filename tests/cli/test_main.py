"""The command line: help, errors, output; what it does is tested in test_mount_here.py, test_serve.py and the guest."""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
from pathlib import Path

import pytest

from pyerofs import __version__
from pyerofs.cli import main
from pyerofs.export.file import open_blob
from tests.support import ordinary
from tests.support.fakeregistry import FakeRegistry, stall, status
from tests.support.images import EROFS, FakePusher, Images, Layer, Published, push_image
from tests.support.lazyimages import LazyLayer, chunked_layer, lazy_image, stargz_layer
from tests.support.ordinary import TAR, file
from tests.support.realregistry import LoggingRegistry
from tests.support.scene import Done, Scene, until
from tests.support.tarballs import archive

COMMANDS = [
    "mount",
    "umount",
    "serve",
    "inspect",
    "list",
    "read",
    "cache",
    "stat",
    "metrics",
    "config",
    "convert",
    "build",
    "push",
    "pull",
]


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_examples(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main([command, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: pyerofs {command}" in said
    assert f"examples:\n  pyerofs {command}" in said
    assert ("oci.password_file" in said) == (command not in ("umount", "list", "cache", "stat", "metrics", "config"))


def test_help_and_version(scene: Scene) -> None:
    done = scene.run("--help")
    assert (done.status, done.err) == (0, "")
    assert all(command in done.out for command in COMMANDS)
    assert scene.run("--version") == Done(0, f"pyerofs {__version__}\n", "")


@pytest.mark.parametrize("arguments", [
    [], ["nonsense"], ["mount"], ["mount", "a"], ["mount", "-t"], ["mount", "-d", "10", "a", "b"], ["umount"],
    ["serve", "a"], ["serve", "--unix", "a", "--tcp", "b", "c"], ["inspect"], ["list", "what"], ["mount", *"abc"],
    ["stat"], ["stat", "/", "--watch", "0"], ["stat", "/", "--watch", "x"], ["stat", "/"], ["metrics", "x"],
    ["metrics", "--output", "a", "--listen", "b"], ["config", "a", "b"],
    ["read"], ["read", "--offset", "-1", "a"], ["read", "--length", "x", "a"], ["read", "--nonsense", "a"],
    ["push"], ["push", "a"], ["pull", "a", "b", "c"], ["pull", "-O"],
    ["convert", "a"], ["convert", "--chunk-size", "5000", "a", "b"], ["build"], ["build", "a"],
    ["build", "--chunk-size", "64M", "a", "b"],
])  # fmt: skip
def test_wrong_invocations(capfd: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main.main(arguments) == 1
    said = capfd.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("pyerofs: ")


# inspect


def test_inspect_for_people(scene: Scene, published: Published) -> None:
    said = scene.run("inspect", "-o", "oci.platform=linux/amd64", published.of_platforms)
    assert (said.status, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0].startswith(f"{published.of_platforms}  sha256:")
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["linux/arm64", lines[1].split()[-1]], ["*", "linux/amd64"], ["windows/amd64", lines[3].split()[-1]],
    ]  # fmt: skip
    assert lines[4].split()[:3] == ["layer", "0", "EROFS"]
    assert EROFS in lines[4]


def test_inspect_as_json(scene: Scene, published: Published, images: Images) -> None:
    said = scene.run("inspect", "--json", "-o", "oci.platform=linux/amd64", published.of_platforms)
    found = json.loads(said.out)
    assert [entry["platform"] for entry in found["platforms"]] == ["linux/arm64", "linux/amd64", "windows/amd64"]
    layer = found["layers"][0]
    assert (layer["native"], layer["size"], layer["media_type"]) == (True, images.plain.stat().st_size, EROFS)
    two = json.loads(scene.run("inspect", "--json", published.two).out)
    assert [layer["index"] for layer in two["layers"]] == [0, 1]
    tar = json.loads(scene.run("inspect", "--json", published.tar).out)
    assert [layer["native"] for layer in tar["layers"]] == [False]


def test_inspect_of_a_whole_image(scene: Scene, registry: LoggingRegistry, images: Images) -> None:
    base, top = Layer(images.other), Layer(images.plain)
    index = {"org.erofs.chunk-index.range": "1024", "org.erofs.chunk-index.digest": f"sha256:{'0' * 64}"}
    base.descriptor["annotations"] = {**index, "org.erofs.role": "overlay-lower"}
    top.descriptor["annotations"] = {"org.erofs.dmverity.root_digest": "00", "org.erofs.dmverity.hash_offset": "4096"}
    reference = f"{registry.host}/app:inspected"
    push_image(registry, "app", "inspected", [base, top])
    cache = f"oci.cache={scene.cache}"
    found = json.loads(scene.run("inspect", "--json", "-o", cache, reference).out)
    assert [layer["role"] for layer in found["layers"]] == ["lower", "lower"]
    assert [layer["chunk_index"] for layer in found["layers"]] == [True, False]
    assert [layer["verity"] for layer in found["layers"]] == [False, True]
    assert [(layer["present"], layer["verified"]) for layer in found["layers"]] == [(0, False)] * 2
    assert [(layer["lazy"], layer["verified_by"]) for layer in found["layers"]] == [(True, "chunk index"), (True, "")]
    assert found["mount"] == {
        "layers": [0, 1], "stacked": True, "error": None, "convert": "", "lazy": [],
        "chunk_index": False, "verity": False, "verified": False,
    }  # fmt: skip
    with open_blob(reference, f"oci=0,oci.verify=none,{cache}") as blob:
        blob.readall()
        until(lambda: blob._export.verification == "verified", "that it is verified")
    said = scene.run("inspect", "-o", cache, reference).out.splitlines()
    lines = [line for line in said if line.startswith("layer")]
    assert lines[0].endswith(f"{base.digest}  lower  index  verified")
    assert lines[1].endswith(f"{top.digest}  lower  verity")
    assert said[-1] == "mount: layers 0, 1, stacked"
    assert scene.run("inspect", "-o", f"{cache},oci=0", reference).out.splitlines()[-1] == (
        "mount: layer 0, by itself  index  verified"
    )


def test_inspect_of_what_cannot_be_mounted(scene: Scene, published: Published, registry: LoggingRegistry) -> None:
    no = ("-o", "oci.convert=no", published.tar)
    tar = json.loads(scene.run("inspect", "--json", *no).out)
    assert tar["layers"][0]["role"] is None
    assert tar["layers"][0]["format"] == "an ordinary tar layer"
    assert tar["mount"]["layers"] == [] and "no EROFS layer" in tar["mount"]["error"]
    assert scene.run("inspect", *no).out.splitlines()[-1].startswith("mount: no: the image has no EROFS")


def test_inspect_of_what_would_be_converted(scene: Scene, published: Published) -> None:
    mount = json.loads(scene.run("inspect", "--json", published.tar).out)["mount"]
    assert (mount["layers"], mount["error"], mount["convert"]) == ([], None, "1 layer of tar, 10.0 KiB")
    said = scene.run("inspect", published.tar).out.splitlines()
    assert said[-3].endswith("  an ordinary tar layer")
    assert said[-2] == "    read at once, since it has no table of contents, and verified by its digest and diff ID"
    assert said[-1] == "mount: all layers as one filesystem, once they have been converted (1 layer of tar, 10.0 KiB)"


def test_inspect_of_layers_with_tables_of_contents(scene: Scene, tmp_path: Path) -> None:
    """As mount judges them."""
    layout = ordinary.Layout(tmp_path / "layout")
    large = archive(file("large", random.Random(1).randbytes(1_300_000)))
    layers = [stargz_layer(large), stargz_layer(archive(file("small", b"1"))), chunked_layer(large)]
    two = layers[2]._replace(annotations={**layers[0].annotations, **layers[2].annotations})
    plain = LazyLayer(large, TAR, {})
    name = lazy_image(layout, [*layers, two, plain], "app")
    found = json.loads(scene.run("inspect", "--json", name).out)
    assert [(layer["format"], layer["lazy"], layer["verified_by"]) for layer in found["layers"]] == [
        ("an eStargz layer", True, "table of contents"),
        ("an eStargz layer", False, "table of contents"),
        ("a zstd:chunked layer", True, "table of contents"),
        ("an ordinary tar layer", False, "digest and diff ID"),
        ("an ordinary tar layer", False, "digest and diff ID"),
    ]
    assert [layer["why"] for layer in found["layers"]] == [
        "",
        "it is small",
        "",
        "its table of contents cannot be used: there are two of them, and they may differ: eStargz and zstd:chunked",
        "it has no table of contents",
    ]
    assert found["mount"]["lazy"] == [0, 2] and found["mount"]["error"] is None
    said = scene.run("inspect", name).out.splitlines()
    assert "    read lazily, and verified by its table of contents" in said
    assert "    read at once, since it is small, and verified by its table of contents" in said
    assert said[-1].startswith(
        "mount: all layers as one filesystem, layers 0, 2 lazily, once others have been converted"
    )
    assert "(1 layer of tar+zstd, 1 layer of tar, " in said[-1]
    small = lazy_image(layout, layers[1:2], "small")
    assert scene.run("inspect", small).out.splitlines()[-1] == "mount: all layers as one filesystem"


def test_inspect_says_the_conversation(scene: Scene, published: Published) -> None:
    done = scene.run("inspect", "-v", published.plain)
    assert done.status == 0
    assert "/manifests/plain" in done.err


def test_inspect_of_what_is_not_there(scene: Scene, registry: LoggingRegistry) -> None:
    for image in (f"{registry.host}/app:missing", f"{registry.host}/missing"):
        done = scene.run("inspect", image)
        assert (done.status, done.out) == (32, "")
        assert image.split("/")[1].split(":")[0] in done.error


@pytest.mark.parametrize("reference", ["", "org/UPPER", "a b", "host:99999999/x", "x@sha256:12", "-"])
def test_references_that_are_none(scene: Scene, reference: str) -> None:
    done = scene.run("inspect", reference)
    assert (done.status, done.out) == (1, "")
    assert done.error


# list


def test_list_is_never_wrong_about_nothing(scene: Scene) -> None:
    done = scene.run("list", "--json")
    assert (done.status, done.err) == (0, "")
    assert all(row["target"] != str(scene.mnt) for row in json.loads(done.out))


# read


def read(scene: Scene, source: str | Path, *arguments: str, options: str = "") -> bytes:
    given = ["-o", f"oci.cache={scene.cache},{options}"] if not str(source).startswith("/") else []
    done = subprocess.run(scene.argv("read", *given, *arguments, source), env=scene.environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def test_read_the_whole(scene: Scene, published: Published, images: Images) -> None:
    data = images.plain.read_bytes()
    assert read(scene, published.plain) == data
    assert read(scene, published.of_platforms, options="oci.platform=linux/amd64") == data
    assert read(scene, images.plain) == data


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (1024, 128), (4095, 2), (1 << 20, 3_000_001), (-10, 100)])
def test_read_a_range(scene: Scene, published: Published, images: Images, offset: int, length: int) -> None:
    data = images.plain.read_bytes()
    offset %= len(data)
    assert read(scene, published.plain, f"--offset={offset}", f"--length={length}") == data[offset : offset + length]
    assert read(scene, images.plain, f"--offset={offset}") == data[offset:]


def test_read_at_and_beyond_the_end(scene: Scene, images: Images) -> None:
    size = images.other.stat().st_size
    assert read(scene, images.other, f"--offset={size}") == b""
    done = scene.run("read", "--offset", str(size + 1), images.other)
    assert (done.status, done.out) == (1, "")
    assert "beyond the end" in done.error


def test_read_fetches_no_more_than_it_needs(scene: Scene, published: Published, images: Images) -> None:
    read(scene, published.plain, "--offset=1024", "--length=128")
    stored = sum(path.stat().st_blocks * 512 for path in scene.cache.rglob("data"))
    assert stored < images.plain.stat().st_size / 4


def test_a_reader_that_has_had_enough(scene: Scene, published: Published) -> None:
    process = scene.start("read", "-o", f"oci.cache={scene.cache}", published.plain)
    assert process.stdout is not None and process.stderr is not None
    assert len(os.read(process.stdout.fileno(), 10)) == 10
    process.stdout.close()
    assert process.wait(30) == 1
    assert process.stderr.read() == ""
    process.stderr.close()


def test_read_to_a_full_disk(scene: Scene, images: Images) -> None:
    with Path("/dev/full").open("wb") as full:
        process = scene.start("read", images.other, stdout=full.fileno())
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert errors == "pyerofs: output: No space left on device\n"


def test_read_of_a_blob_that_goes_away(scene: Scene, fake: FakeRegistry, images: Images) -> None:
    push_image(FakePusher(fake), "app", "1", [Layer(images.plain)])
    fake.default = status(404)
    done = scene.run("read", "-o", f"oci.cache={scene.cache}", f"{fake.host}/app:1")
    assert (done.status, done.out) == (32, "")
    assert "404" in done.err or "not" in done.err
    assert "Traceback" not in done.err


# Secrets


@pytest.mark.parametrize("password", ["sesame", r"se\,same", '"se,same"', r"back\\slash"])
@pytest.mark.parametrize("options", ["oci.username=me,oci.password={},oci=0", "oci.username=me,oci.password={}"])
def test_a_password_is_wiped_from_the_process_list(
    scene: Scene, fake: FakeRegistry, images: Images, options: str, password: str
) -> None:
    push_image(FakePusher(fake), "app", "1", [Layer(images.other)])
    release, reached = threading.Event(), threading.Event()
    fake.default = stall(release, reached=reached)
    given = f"oci.cache={scene.cache},{options.format(password)}"
    process = scene.start("read", "-o", given, f"{fake.host}/app:1")
    try:
        assert reached.wait(30)
        shown = Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")
        assert shown[-3] == given.replace(password, "*" * len(password))
        assert shown[-2] == f"{fake.host}/app:1"
    finally:
        release.set()
        process.kill()
        process.communicate()


def test_a_wrong_password_is_not_repeated(scene: Scene, fake: FakeRegistry, images: Images) -> None:
    push_image(FakePusher(fake), "app", "1", [Layer(images.other)])
    fake.basic = ("me", "right")
    for extra in ("", ",oci.password=two", ",oci.nonsense=1"):
        done = scene.run("inspect", "-v", "-o", f"oci.username=me,oci.password=sesame{extra}", f"{fake.host}/app:1")
        assert done.status in (1, 32)
        assert "sesame" not in done.out + done.err
