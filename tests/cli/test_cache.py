"""`pyerofs cache`, as a user has it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pyerofs import open_blob
from pyerofs.cli import main
from tests.support.blobs import Rig
from tests.support.fakeregistry import FakeRegistry
from tests.support.images import FakePusher, Layer, push_image
from tests.support.scene import Scene, until

SIZE = 1_000_003
PART = 40_000_003


class Stage(NamedTuple):
    rig: Rig
    capsys: pytest.CaptureFixture[str]

    def run(self, *arguments: str) -> tuple[int, list[str], str]:
        """Exit status, lines of the output, and the error."""
        action, *rest = arguments
        status = main.main(["cache", action, "--dir", str(self.rig.cache), *rest])
        said = self.capsys.readouterr()
        return status, said.out.splitlines(), said.err

    def ls(self) -> dict[str, Any]:
        status, lines, error = self.run("ls", "--json")
        assert (status, error) == (0, "")
        return {row["digest"]: row for row in json.loads("\n".join(lines))}

    def whole(self, seed: int, used: float | None = None) -> str:
        """A blob that is complete and verified; its digest."""
        reference, data = self.rig.publish(SIZE, seed)
        with self.rig.open(reference) as blob:
            blob.read()
            until(lambda: blob._export.verification == "verified", "verified")
        if used is not None:
            os.utime(self.rig.entry(data) / "lock", (used, used))
        return Layer(data).digest

    def path(self, digest: str) -> Path:
        return self.rig.place(digest)


@pytest.fixture
def stage(fake: FakeRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Stage]:
    stage = Stage(Rig(fake, tmp_path), capsys)
    yield stage
    assert stage.rig.log == []


def spoil(path: Path) -> None:
    with (path / "data").open("r+b") as file:
        file.seek(500_000)
        byte = file.read(1)
        file.seek(500_000)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("action", ["ls", "gc", "verify", "rm"])
def test_each_has_help_with_examples(capsys: pytest.CaptureFixture[str], action: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["cache", action, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: pyerofs cache {action}" in said
    assert f"examples:\n  pyerofs cache {action}" in said


@pytest.mark.parametrize(("arguments", "words"), [
    ([], "an action is missing"), (["nonsense"], "nonsense"), (["ls", "x"], "x"), (["rm"], "--all"),
    (["rm", "--all", "abcdef"], "--all"), (["rm", "abc"], "not a digest"), (["rm", "abcdef"], "no blob"),
    (["verify", "xyz"], "not a digest"), (["gc", "--max", "x"], "--max='x'"),
    (["gc", "--older-than", "x"], "--older-than='x'"),
    (["ls", "-o", "ro"], "mount only"), (["ls", "--dir", "/a", "-o", "oci.cache=/b"], "one of them"),
])  # fmt: skip
def test_wrong_invocations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    place = ["-o", f"oci.cache={tmp_path}/cache"] if arguments[:1] in (["rm"], ["verify"], ["gc"]) else []
    assert main.main(["cache", *arguments, *place]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"pyerofs: .*\n", said.err) and words in said.err


def test_an_empty_cache(stage: Stage) -> None:
    assert stage.ls() == {}
    nothing = f"0 blobs, 0 bytes on disk in {stage.rig.cache}"
    assert stage.run("ls") == (0, [nothing], "")
    assert stage.run("gc", "--max", "1G", "--older-than", "1d") == (
        0, ["removed 0 blobs: 0 bytes freed, 0 bytes left"], "",
    )  # fmt: skip
    assert stage.run("verify") == (0, [], "")
    assert stage.run("rm", "--all") == (0, [], "")


# ls


def test_ls(stage: Stage) -> None:
    whole = stage.whole(1, used=86400.0)
    reference, data = stage.rig.publish(PART, 2)
    with stage.rig.open(reference) as blob:
        blob.pread(1, 0)
        rows = stage.ls()
    part = Layer(data).digest
    assert list(rows) == [whole, part]
    assert rows[whole] == {
        "digest": whole, "giver": None,
        "size": SIZE, "present": SIZE, "disk": rows[whole]["disk"], "used": "1970-01-02T00:00:00Z",
        "in_use": False, "complete": True, "verified": True, "broken": False,
        "converted_for": [],
    }  # fmt: skip
    assert rows[whole]["disk"] > SIZE
    assert rows[part]["in_use"] and not rows[part]["complete"] and not rows[part]["verified"]
    assert 0 < rows[part]["present"] < PART
    assert rows[part]["giver"] == f"{stage.rig.fake.host}/app"
    (stage.path(whole) / "verified").unlink()
    status, lines, _ = stage.run("ls")
    assert status == 0
    assert [line.split()[0] for line in lines[:2]] == [whole, part]
    assert re.search(rf"  {SIZE}  100 % .* KiB  1970-01-0[12] [0-9:]+  broken$", lines[0])
    assert re.search(rf"  {PART}    0 % .*  partial, from {stage.rig.fake.host}/app$", lines[1])
    assert re.fullmatch(rf"2 blobs, [0-9.]+ MiB on disk in {stage.rig.cache}", lines[2])


def test_a_broken_one_is_shown(stage: Stage) -> None:
    digest = stage.whole(1)
    os.truncate(stage.path(digest) / "data", 5)
    assert stage.ls()[digest]["broken"]
    assert stage.run("ls")[1][0].endswith("  broken")


# gc


def test_gc_of_what_is_broken(stage: Stage) -> None:
    good, bad = stage.whole(1), stage.whole(2)
    os.truncate(stage.path(bad) / "data", 5)
    status, lines, error = stage.run("gc")
    assert (status, error) == (0, "")
    assert lines[0].startswith(bad) and lines[0].endswith("removed: broken")
    assert lines[1].startswith("removed 1 blob: ")
    assert list(stage.ls()) == [good]


def test_gc_of_what_is_old(stage: Stage) -> None:
    old, new = stage.whole(1, used=1000.0), stage.whole(2)
    assert stage.run("gc", "--older-than", "0")[1][-1].startswith("removed 2 blobs and 2 manifests: ")
    old, new = stage.whole(1, used=1000.0), stage.whole(2)
    status, lines, _ = stage.run("gc", "--older-than", "1h")
    assert status == 0
    assert lines[0].startswith(old) and "removed: not used for " in lines[0] and lines[0].endswith("weeks")
    assert list(stage.ls()) == [new]


@pytest.mark.parametrize(
    "given", [["--max", "2500K"], ["-o", "cache.max=2500K"], ["--max", "2500K", "-o", "cache.max=1"]]
)
def test_gc_down_to_a_size(stage: Stage, given: list[str]) -> None:
    digests = [stage.whole(seed, used=1000.0 - seed) for seed in range(1, 4)]
    status, lines, error = stage.run("gc", *given)
    assert (status, error) == (0, "")
    assert lines[0].startswith(digests[2]) and lines[0].endswith("removed: beyond 2.4 MiB")
    assert re.fullmatch(r"removed 1 blob: [0-9.]+ (KiB|MiB) freed, [0-9.]+ MiB left", lines[1])
    assert list(stage.ls()) == [digests[1], digests[0]]


def test_gc_leaves_what_is_in_use(stage: Stage) -> None:
    reference, data = stage.rig.publish(SIZE)
    with stage.rig.open(reference) as blob:
        blob.read()
        status, lines, error = stage.run("gc", "--max", "1K", "--older-than", "0")
        assert status == 0
        assert lines[0].startswith("removed 0 blobs")
        assert re.fullmatch(r"pyerofs: .* are in use and stay, although only 1\.0 KiB are allowed\n", error)
    assert Layer(data).digest in stage.ls()


# verify


def test_verify(stage: Stage) -> None:
    good, bad = stage.whole(1, used=1000.0), stage.whole(2, used=2000.0)
    (stage.path(good) / "verified").unlink()
    spoil(stage.path(bad))
    reference, data = stage.rig.publish(PART, 3)
    with stage.rig.open(reference) as blob:
        blob.pread(1, 0)
    part, present = Layer(data).digest, stage.ls()[Layer(data).digest]["present"]
    broken = stage.whole(4)
    os.truncate(stage.path(broken) / "data", 5)
    status, lines, error = stage.run("verify")
    assert status == 32
    assert re.fullmatch(r"pyerofs: 1 of 2 complete blobs did not match their digest and were removed; .*\n", error)
    assert lines[0] == f"{good}  verified"
    assert re.fullmatch(rf"{bad}  removed: its bytes have the digest sha256:[0-9a-f]{{64}}", lines[1])
    assert lines[2] == f"{part}  {present} of {PART} bytes are there: only a complete blob can be verified"
    assert lines[3] == f"{broken}  broken: nothing of it can be verified (`pyerofs cache gc` removes it)"
    assert set(stage.ls()) == {good, part, broken}
    assert stage.ls()[good]["verified"]
    assert stage.run("verify", good, part[7:20])[0] == 0


def test_verify_one(stage: Stage) -> None:
    good, bad = stage.whole(1), stage.whole(2)
    spoil(stage.path(bad))
    assert stage.run("verify", good[:13], good) == (0, [f"{good}  verified"], "")
    assert stage.run("verify", bad[7:13])[0] == 32
    assert list(stage.ls()) == [good]


def test_verify_of_one_in_use(stage: Stage) -> None:
    """It is removed all the same; whoever opens it next has it fetched anew."""
    reference, data = stage.rig.publish(SIZE)
    digest = stage.whole(1)
    with stage.rig.open(reference) as blob:
        assert stage.run("verify") == (0, [f"{digest}  verified"], "")
        spoil(stage.path(digest))
        assert stage.run("verify")[0] == 32
        assert stage.ls() == {}
        assert blob.size == SIZE
    asked = len(stage.rig.ranges)
    with stage.rig.open(reference) as blob:
        assert blob.read() == data
    assert len(stage.rig.ranges) > asked


# rm


def test_rm(stage: Stage) -> None:
    first, second, third = (stage.whole(seed) for seed in range(1, 4))
    assert stage.run("rm", first, second[7:17]) == (0, [f"{first}  removed", f"{second}  removed"], "")
    assert list(stage.ls()) == [third]
    assert list((stage.rig.cache / "manifests").iterdir())
    assert stage.run("rm", "--all") == (0, [f"{third}  removed"], "")
    assert stage.ls() == {}
    assert not list((stage.rig.cache / "manifests").iterdir())


def test_rm_of_one_in_use(stage: Stage) -> None:
    other = stage.whole(2)
    reference, data = stage.rig.publish(SIZE, 1)
    digest = Layer(data).digest
    with stage.rig.open(reference) as blob:
        assert blob.pread(10, 0) == data[:10]
        status, lines, error = stage.run("rm", "--all")
        assert (status, lines) == (1, [f"{other}  removed"])
        assert error == (
            f"pyerofs: not removed, in use: {digest} (--force removes it; mounts that use it keep working)\n"
        )
        assert stage.run("rm", "--force", digest) == (0, [f"{digest}  removed"], "")
        assert blob.read() == data
        assert stage.ls() == {}
    assert stage.ls() == {}


# In the whole of it


def test_the_default_directory_is_the_option_s(scene: Scene, fake: FakeRegistry) -> None:
    rig = Rig(fake, scene.directory)
    reference, data = rig.publish(SIZE)
    with rig.open(reference) as blob:
        assert blob.pread(5, 0) == data[:5]
    done = scene.run("cache", "ls", "--json", "-o", f"oci.cache={scene.cache}")
    assert [row["digest"] for row in json.loads(done.out)] == [Layer(data).digest]


@pytest.mark.parametrize("what", ["image", "tag", "manifest", "layer"])
def test_rm_takes_an_image_its_digest_or_a_layer_s(
    fake: FakeRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """As inspect and stat show them; a layer that another image has too stays, unless it is meant itself."""
    pusher, cache = FakePusher(fake), tmp_path / "cache"
    layers = [Layer(erofs_image(seed)) for seed in (b"base", b"own")]
    found = push_image(pusher, "app", "1", layers)
    push_image(pusher, "app", "2", layers[:1])
    for tag, number in (("1", 0), ("1", 1), ("2", 0)):
        with open_blob(f"{fake.host}/app:{tag}", f"oci.layer={number},oci.cache={cache}") as blob:
            blob.read()
    names = {
        "image": f"{fake.host}/app:1", "tag": f"docker://{fake.host}/app:1", "manifest": str(found["digest"]),
        "layer": layers[1].digest,
    }  # fmt: skip
    assert main.main(["cache", "rm", "--dir", str(cache), names[what]]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{layers[1].digest}  removed"]
    assert main.main(["cache", "rm", "--dir", str(cache), layers[0].digest]) == 0


def erofs_image(seed: bytes) -> bytes:
    """Bytes with a superblock, which is all that is looked at here."""
    block = bytearray(8192)
    block[1024:1028] = (0xE0F5E1E2).to_bytes(4, "little")
    block[1024 + 12] = 12
    block[1024 + 36 : 1024 + 40] = (2).to_bytes(4, "little")
    block[4096 : 4096 + len(seed)] = seed
    return bytes(block)
