"""`stat`, `list`, `metrics` and the daemon's log of real mounts on this machine, a hung registry's among them."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics import parser

from pyerofs.kernel import mountpoint
from pyerofs.mounting.present import record_of
from tests.support.fakeregistry import FakeRegistry, honest, silent, status
from tests.support.images import FakePusher, Images, Layer, push_image
from tests.support.scene import Scene, by_pyerofs, until

pytestmark = pytest.mark.usefixtures("nbdfuse")

FUSE = "erofs.fuse"


@pytest.fixture
def image(fake: FakeRegistry, images: Images) -> str:
    push_image(FakePusher(fake), "app", "1", [Layer(images.plain)])
    return f"{fake.host}/app:1"


@pytest.fixture
def hang(fake: FakeRegistry) -> Iterator[threading.Event]:
    """Once it is set, the registry answers no more; it lets go at the end."""
    hung, release = threading.Event(), threading.Event()
    fake.default = lambda exchange: (silent(release) if hung.is_set() else honest)(exchange)
    yield hung
    release.set()
    fake.default = honest


def stat(scene: Scene) -> dict[str, object]:
    done = scene.run("stat", "--json", scene.mnt)
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out)
    assert isinstance(found, dict)
    return found


def test_stat_of_a_mount(scene: Scene, image: str, images: Images, fake: FakeRegistry) -> None:
    scene.mount_image(image, fstype=FUSE)
    (scene.mnt / "hello").read_bytes()
    found = stat(scene)
    assert (found["target"], found["source"], found["driver"]) == (str(scene.mnt), image, "fuse")
    assert found["pid"] in scene.processes()
    assert found["cache"]["size_bytes"] == images.plain.stat().st_size  # type: ignore[index]  # JSON
    assert found["cache"]["directory"].startswith(str(scene.cache))  # type: ignore[index]  # JSON
    assert found["reads"]["latency"]["count"] > 0  # type: ignore[index]  # JSON
    assert found["fetches"]["requests"] == len(fake.requests("/blobs/"))  # type: ignore[index]  # JSON
    done = scene.run("stat", scene.mnt)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"{scene.mnt}: {image}\n")
    by_pyerofs(scene)
    done = scene.run("stat", scene.mnt)
    assert (done.status, done.out) == (1, "")
    assert "is not a mount of pyerofs" in done.error


def test_stat_of_a_hung_registry_answers_at_once(
    scene: Scene, image: str, fake: FakeRegistry, hang: threading.Event
) -> None:
    scene.mount_image(image, "oci.timeout=30", fstype=FUSE)
    hang.set()
    reader = subprocess.Popen(["find", scene.mnt, "-type", "f", "-exec", "cat", "{}", "+"], stdout=subprocess.DEVNULL)
    try:
        until(lambda: stat(scene)["reads"]["waiting"], "a read that waits")  # type: ignore[index]  # JSON
        before = len(fake.requests("/blobs/"))
        began = time.monotonic()
        found = stat(scene)
        assert time.monotonic() - began < 10  # a read would take 30 s
        assert found["fetches"]["in_flight"]  # type: ignore[index]  # JSON
        assert len(fake.requests("/blobs/")) == before
        (row,) = [row for row in json.loads(scene.run("list", "--json").out) if row["target"] == str(scene.mnt)]
        assert (row["health"], row["source"]) == ("ok", image)
        assert 0 < row["present_percent"] < 100
        text = scene.run("metrics").out
        waiting = [f for f in parser.text_string_to_metric_families(text) if f.name == "pyerofs_reads_waiting"]
        assert next(s.value for f in waiting for s in f.samples if s.labels["target"] == str(scene.mnt)) > 0
    finally:
        reader.kill()
        reader.wait()
    hang.clear()
    subprocess.run(["umount", "-l", scene.mnt], check=True)


def test_stat_of_a_stopped_daemon(scene: Scene, image: str) -> None:
    scene.mount_image(image, fstype=FUSE)
    pid = stat(scene)["pid"]
    assert isinstance(pid, int)
    os.kill(pid, 19)
    try:
        done = scene.run("stat", scene.mnt)
        assert done.status == 32
        assert f"(pid {pid} is stopped)" in done.error
        assert done.out.startswith(f"{scene.mnt}: {image}\n")
        (row,) = [row for row in json.loads(scene.run("list", "--json").out) if row["target"] == str(scene.mnt)]
        assert (row["health"], row["present"], row["present_percent"]) == ("no answer", None, None)
    finally:
        os.kill(pid, 18)
    by_pyerofs(scene)


def test_list_for_people(scene: Scene, image: str, images: Images) -> None:
    scene.mount_image(image, fstype=FUSE)
    (line,) = [line for line in scene.run("list").out.splitlines() if line.startswith(str(scene.mnt))]
    assert line.split()[1:2] == [image]
    assert line.split()[-1] == "ok"
    assert line.split()[-2].endswith("%")
    by_pyerofs(scene)
    scene.mount(images.plain, "loop", fstype="erofs.local")
    (line,) = [line for line in scene.run("list").out.splitlines() if line.startswith(str(scene.mnt))]
    assert line.split()[-4:] == ["local", "-", "-", "-"]
    assert "is not a mount of pyerofs with a daemon" in scene.run("stat", scene.mnt).error
    by_pyerofs(scene)


# The log


def messages(log: Path) -> list[str]:
    return [json.loads(line)["message"] for line in log.read_text().splitlines()]


def test_a_mount_and_its_end_are_in_the_log(scene: Scene, image: str) -> None:
    log = scene.directory / "log"
    scene.mount_image(image, f"log.to={log}", fstype=FUSE)
    by_pyerofs(scene)
    assert messages(log) == [f"mounted {image} by fuse", "unmounted"]


def test_what_goes_wrong_later_is_in_the_log(scene: Scene, image: str, fake: FakeRegistry, images: Images) -> None:
    log = scene.directory / "log"
    password = scene.directory / "password"
    password.write_text("sesame")
    fake.basic = ("me", "sesame")
    scene.mount_image(
        image, "oci.username=me", f"oci.password_file={password}", "oci.timeout=5", f"log.to={log}", fstype=FUSE
    )
    assert messages(log) == [f"mounted {image} by fuse"]
    fake.basic = ("me", "changed")
    subprocess.run(["cat", scene.mnt / "large"], capture_output=True, check=False)
    entry = json.loads(log.read_text().splitlines()[1])
    assert (entry["level"], entry["target"], entry["source"], entry["driver"]) == (
        "warning", str(scene.mnt), image, "fuse",
    )  # fmt: skip
    assert entry["id"].startswith("pyerofs-")
    assert "401" in entry["message"] or "credentials" in entry["message"]
    said = [scene.run(*command).out for command in (["stat", scene.mnt], ["stat", "--json", scene.mnt], ["metrics"])]
    for text in (log.read_text(), *said):
        assert str(scene.mnt) in text
        assert "sesame" not in text
    by_pyerofs(scene)


def test_a_log_that_cannot_be_written_ends_no_mount(scene: Scene, images: Images) -> None:
    done = scene.run("mount", "-t", FUSE, "-o", "log.to=/nonexistent/log", images.other, scene.mnt)
    assert done.status == 0
    assert done.error.startswith("log.to=/nonexistent/log: No such file or directory")
    by_pyerofs(scene)


# The configuration


def test_a_mount_follows_the_configuration(
    scene: Scene, image: str, fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its daemon too, also when the file has changed since."""
    path = tmp_path / "config.toml"
    log = tmp_path / "log"
    path.write_text(f"[oci]\ntimeout = 1\ncache = '{scene.cache}'\n[log]\nto = '{log}'\nlevel = 'error'\n")
    monkeypatch.setenv("PYEROFS_CONFIG", str(path))
    done = scene.run("mount", "-t", FUSE, image, scene.mnt)
    assert (done.status, done.err) == (0, "")
    assert (scene.cache / "sha256").is_dir()
    path.write_text("[oci]\nlayer = 7\n")
    fake.default = status(503)
    began = time.monotonic()
    assert subprocess.run(["cat", scene.mnt / "large"], capture_output=True).returncode == 1
    assert time.monotonic() - began < 60  # without the file it would be 120 s
    assert log.read_text() == ""  # those were warnings
    by_pyerofs(scene)


def test_reads_that_fail_for_want_of_time_are_in_the_log(
    scene: Scene, image: str, fake: FakeRegistry, hang: threading.Event
) -> None:
    log = scene.directory / "log"
    scene.mount_image(image, "oci.timeout=1", f"log.to={log}", fstype=FUSE)
    hang.set()
    assert subprocess.run(["cat", scene.mnt / "large"], capture_output=True).returncode == 1
    until(lambda: "failed after 1 s (oci.timeout)" in log.read_text(), "a line in the log")
    by_pyerofs(scene)


def test_debug_shows_what_the_daemon_asks_the_registry(scene: Scene, image: str, fake: FakeRegistry) -> None:
    log = scene.directory / "log"
    scene.mount_image(image, f"log.to={log}", "log.level=debug", fstype=FUSE)
    before = len(log.read_text().splitlines())
    asked = len(fake.requests("/blobs/"))
    assert subprocess.run(["cat", scene.mnt / "large"], capture_output=True).returncode == 0
    entries = [json.loads(line) for line in log.read_text().splitlines()[before:]]
    said = [entry["message"] for entry in entries if entry["level"] == "debug"]
    assert len([text for text in said if "/blobs/" in text]) >= len(fake.requests("/blobs/")) - asked > 0
    by_pyerofs(scene)


def test_reads_go_on_after_more_failures_than_a_pipe_holds(scene: Scene, image: str, fake: FakeRegistry) -> None:
    """nbdfuse tells of each on its standard error: where nobody reads that, its threads stand still for ever."""
    log = scene.directory / "log"
    scene.mount_image(image, f"log.to={log}", "log.level=debug", "oci.timeout=1", fstype=FUSE)
    fake.default = status(403)
    found = mountpoint.find(str(scene.mnt))
    assert found is not None
    record = record_of(found)
    assert record is not None
    path = record.device
    size = os.stat(path).st_size
    failed = 0
    with open(path, "rb", buffering=0) as file:  # past the kernel's cache of EROFS, one request for each read
        while failed < 1200:
            try:
                os.pread(file.fileno(), 512, size // 2)
            except OSError:
                failed += 1
    fake.default = honest
    assert subprocess.run(["cat", scene.mnt / "large"], capture_output=True).returncode == 0
    assert log.read_text().count("nbdfuse: ") >= 1200
    by_pyerofs(scene)
