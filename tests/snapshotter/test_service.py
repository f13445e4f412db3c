"""The ten calls, as containerd's own snapshotters answer them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from pyerofs.errors import UnavailableError
from pyerofs.grpc.server import Call
from pyerofs.grpc.status import Code, RpcError
from pyerofs.snapshotter import protocol as said
from pyerofs.snapshotter import service
from tests.support.fakeregistry import FakeRegistry
from tests.support.scene import until
from tests.support.snapshots import SnapshotsStage

PULLED = {said.IMAGE: "127.0.0.1:1/app:1", said.MANIFEST: f"sha256:{1:064x}", said.LAYER: f"sha256:{2:064x}"}

CALLS = ("Prepare", "View", "Mounts", "Commit", "Remove", "Stat", "Update", "Usage", "List", "Cleanup")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[SnapshotsStage]:
    with SnapshotsStage(tmp_path) as stage:
        yield stage


def refused(code: Code, act: object, *arguments: object) -> None:
    assert callable(act)
    with pytest.raises(RpcError) as caught:
        act(*arguments)
    assert caught.value.code is code


def directories(stage: SnapshotsStage) -> set[str]:
    return {path.name for path in stage.directory.iterdir()}


def test_layers_are_stacked_as_overlayfs_wants_them(stage: SnapshotsStage) -> None:
    [mount] = stage.prepare("one")
    assert (mount["type"], mount["options"]) == ("bind", ["rw", "rbind"])
    first = mount["source"]
    stage.commit("one", "layer1")
    [mount] = stage.prepare("two", "layer1")
    second = os.path.dirname(mount["options"][2].removeprefix("upperdir="))
    assert mount["type"] == "overlay"
    assert mount["options"] == ["index=off", f"workdir={second}/work", f"upperdir={second}/fs", f"lowerdir={first}"]
    stage.commit("two", "layer2")
    [mount] = stage.prepare("container", "layer2")
    assert mount["options"][3] == f"lowerdir={second}/fs:{first}"
    assert stage.mounts("container") == [mount]
    [mount] = stage.view("look", "layer2")
    assert (mount["type"], mount["options"]) == ("overlay", ["index=off", f"lowerdir={second}/fs:{first}"])
    [mount] = stage.view("base", "layer1")
    assert (mount["type"], mount["source"], mount["options"]) == ("bind", first, ["ro", "rbind"])


def test_the_upper_directory_is_like_the_root_below(stage: SnapshotsStage) -> None:
    [mount] = stage.prepare("one")
    os.chmod(mount["source"], 0o751)
    stage.commit("one", "layer1")
    [mount] = stage.prepare("two", "layer1")
    assert os.stat(mount["options"][2].removeprefix("upperdir=")).st_mode & 0o7777 == 0o751


def test_what_does_not_fit_is_refused_with_containerd_s_codes(stage: SnapshotsStage) -> None:
    stage.prepare("one")
    refused(Code.ALREADY_EXISTS, stage.prepare, "one")
    refused(Code.NOT_FOUND, stage.prepare, "x", "nobody")
    refused(Code.INVALID_ARGUMENT, stage.prepare, "x", "one")  # not committed
    refused(Code.NOT_FOUND, stage.mounts, "nobody")
    refused(Code.NOT_FOUND, stage.stat, "nobody")
    refused(Code.NOT_FOUND, stage.remove, "nobody")
    refused(Code.NOT_FOUND, stage.usage_of, "nobody")
    refused(Code.NOT_FOUND, stage.commit, "nobody", "x")
    refused(Code.INVALID_ARGUMENT, stage.commit, "one", "")
    stage.commit("one", "layer1")
    refused(Code.FAILED_PRECONDITION, stage.mounts, "layer1")
    stage.prepare("two", "layer1")
    refused(Code.FAILED_PRECONDITION, stage.remove, "layer1")  # it has a child
    refused(Code.ALREADY_EXISTS, stage.commit, "two", "layer1")
    with pytest.raises(RpcError, match="cannot be moved"):
        stage.commit("two", "layer2", parent="elsewhere")
    stage.commit("two", "layer2", parent="layer1")
    stage.view("look", "layer2")
    refused(Code.FAILED_PRECONDITION, stage.commit, "look", "x")
    assert stage.names() == ["layer1", "layer2", "look"]


def test_a_snapshot_that_could_not_be_made_is_not_there(stage: SnapshotsStage, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.makedirs", full)
        refused(Code.UNAVAILABLE, stage.prepare, "one")
    assert stage.names() == []
    stage.prepare("one")


def test_labels_are_replaced_or_changed_one_by_one(stage: SnapshotsStage) -> None:
    stage.prepare("one", **{"a": "1", "b.c": "2"})
    assert stage.stat("one")["labels"] == {"a": "1", "b.c": "2"}
    assert stage.update("one", {"b.c": "3", "d": "4"}, "labels.b.c", "labels.a") == {"b.c": "3"}
    assert stage.update("one", {"d": "4"}) == {"d": "4"}
    assert stage.update("one", {}, "labels") == {}
    with pytest.raises(RpcError, match="parent of a snapshot cannot be updated"):
        stage.update("one", {}, "parent")
    stage.commit("one", "layer1", labels={"e": "5"})
    assert stage.stat("layer1")["labels"] == {"e": "5"}


def test_remove_forgets_at_once_and_a_queue_does_the_rest(stage: SnapshotsStage) -> None:
    held = threading.Lock()
    [mount] = stage.prepare("one")
    Path(mount["source"], "file").write_bytes(b"x")
    number = int(Path(mount["source"]).parent.name)
    real = stage.chains.drop

    def slow(number: int) -> None:
        with held:
            real(number)

    stage.chains.drop = slow  # type: ignore[method-assign]  # a fake
    with held:
        stage.remove("one")
        stage.cleanup()
        assert stage.names() == []
        assert directories(stage) == {str(number)}
    until(lambda: not directories(stage), "that the directory has gone")


def test_cleanup_removes_what_no_snapshot_has(stage: SnapshotsStage) -> None:
    stage.prepare("one")
    (stage.directory / "77" / "fs").mkdir(parents=True)
    stage.cleanup()
    until(lambda: len(directories(stage)) == 1, "that it has gone")
    assert stage.mounts("one")


def test_numbers_are_never_given_twice(stage: SnapshotsStage) -> None:
    """A directory of a removed snapshot may still be there."""
    [before] = stage.prepare("one")
    stage.remove("one")
    [after] = stage.prepare("one")
    assert before["source"] != after["source"]


def test_usage_is_counted_in_the_background(stage: SnapshotsStage) -> None:
    [mount] = stage.prepare("one")
    Path(mount["source"], "file").write_bytes(bytes(1 << 20))
    os.link(Path(mount["source"], "file"), Path(mount["source"], "link"))
    until(lambda: stage.usage_of("one")[1] == 2, "that it has been counted")
    assert 1 << 20 <= stage.usage_of("one")[0] < 2 << 20
    stage.commit("one", "layer1")
    until(lambda: stage.state.get("layer1").size >= 1 << 20, "that it is kept")


def test_a_pull_without_annotations_is_an_ordinary_one(stage: SnapshotsStage) -> None:
    """Never AlreadyExists without a target: containerd 1.6 would try for ever."""
    assert stage.prepare("extract-1 sha256:x", **{said.TARGET: "sha256:x"})
    assert stage.prepare("extract-2 sha256:x", **PULLED)


@pytest.mark.parametrize("image", ["http://u:p@x/y", "", " ", "a" * 5000, "UPPER/x", "x@sha256:0"])
def test_absurd_names_of_images_are_ordinary_ones(stage: SnapshotsStage, image: str) -> None:
    assert stage.prepare("extract", **{**PULLED, said.TARGET: "sha256:x", said.IMAGE: image})
    assert all(line.isprintable() for line in stage.log)


def test_labels_of_absurd_length_are_refused(stage: SnapshotsStage) -> None:
    refused(Code.INVALID_ARGUMENT, lambda: stage.prepare("x", **{"label": "x" * 100_000}))
    assert stage.names() == []


def test_a_registry_that_does_not_answer_holds_up_nobody_for_long(
    tmp_path: Path, fake: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer is an ordinary one then, and other calls go on meanwhile."""
    monkeypatch.setattr(service, "DECISION_PATIENCE", 0.05)
    release = threading.Event()

    def hang(*_: object) -> None:
        release.wait(60)

    with SnapshotsStage(tmp_path, ["oci.insecure", f"oci.cache={tmp_path}/cache"]) as stage:
        monkeypatch.setattr(fake, "answer", hang)
        labels = {**PULLED, said.IMAGE: f"{fake.host}/app:1", said.TARGET: "sha256:x"}
        try:
            assert stage.prepare("extract", **labels)
            stage.prepare("other")
            stage.remove("other")
        finally:
            release.set()
        assert any("has not answered within" in line for line in stage.log)


def test_state_stays(tmp_path: Path) -> None:
    with SnapshotsStage(tmp_path) as stage:
        stage.prepare("one", **{"a": "1"})
        stage.commit("one", "layer1", labels={"b": "2"})
        mounts = stage.prepare("two", "layer1")
    with SnapshotsStage(tmp_path) as stage:
        assert stage.names() == ["layer1", "two"]
        assert stage.mounts("two") == mounts
        assert stage.stat("layer1")["labels"] == {"b": "2"}
        assert stage.stat("two")["parent"] == "layer1"


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "newer":
        path.write_bytes(data[:60] + (99).to_bytes(4, "big") + data[64:])  # PRAGMA user_version
    else:
        path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "garbage": b"garbage" * 1000}[how])


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("newer", r"was written by a newer pyerofs \(its version is 99, 1 is known here\): install that one again"),
        ("empty", r"is damaged \(it is empty, and snapshots are there\): restore it, or stop containerd, move .* away"),
        ("cut", r"is damaged \(.*malformed.*\): restore it"),
        ("garbage", r"is damaged \(file is not a database\): restore it"),
    ],
)
def test_a_state_that_cannot_be_read_is_refused_with_the_way_out(tmp_path: Path, how: str, said: str) -> None:
    with SnapshotsStage(tmp_path) as stage:
        for number in range(100):
            stage.prepare(f"one{number}", **{"label": "x" * 500})
    damage(tmp_path / "state.db", how)
    with pytest.raises(UnavailableError, match=said):
        SnapshotsStage(tmp_path)


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(name=some.sampled_from(CALLS), data=some.binary(max_size=200))
def test_any_request_is_answered_or_refused(stage: SnapshotsStage, name: str, data: bytes) -> None:
    method = stage.methods[said.SERVICE + name]
    try:
        if method.unary:
            method.unary(data, Call(name, {}, 60.0))
        elif method.stream:
            list(method.stream(data, Call(name, {}, 60.0)))
    except RpcError:
        pass
