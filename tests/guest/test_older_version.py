"""A mount whose daemon was of an older version is taken over by this one: from that version's record and its cache."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from tests.guest.load import drop_caches, record_of
from tests.support.fakeregistry import FakeRegistry
from tests.support.images import FakePusher, Layer, push_image
from tests.support.olderversion import unpack
from tests.support.scene import Done, Scene, until


def test_reattach_takes_over_a_mount_of_an_older_version(scene: Scene, fake: FakeRegistry) -> None:
    older = unpack(scene.directory)
    push_image(FakePusher(fake), "app", "1", [Layer(older.image.read_bytes())])
    assert older.cache == scene.cache
    scene.mount_image(f"{fake.host}/app:1", "oci=0", fstype="erofs.nbd")
    expected = {path.name: path.read_bytes() for path in scene.mnt.iterdir()}
    dead = record_of(scene)
    os.kill(dead.supervisor, signal.SIGKILL)
    os.kill(dead.pid, signal.SIGKILL)
    until(lambda: not dead.alive() and not dead.supervised(), "the end of both")
    # The kernel's device is what it would be, whichever version has attached it; the record is that version's.
    part = {**older.record["parts"][0], "id": dead.parts[0].id, "device": dead.parts[0].device}
    options = [f"oci.cache={scene.cache}", "oci=0", "oci.timeout=20"]
    request = {**older.record["request"], "source": dead.source, "options": options, "target": dead.target}
    places = {"id": dead.id, "target": dead.target, "source": dead.source, "device": dead.device, "boot": dead.boot}
    processes = {key: getattr(dead, key) for key in ("pid", "started", "supervisor", "supervisor_started")}
    Path(dead.path).write_text(json.dumps({**older.record, **places, **processes, "parts": [part], "request": request}))
    assert scene.run("reattach", scene.mnt) == Done(0, "", "")
    assert record_of(scene).alive() and record_of(scene).supervised()
    drop_caches()
    assert {path.name: path.read_bytes() for path in scene.mnt.iterdir()} == expected
    subprocess.run(["umount", scene.mnt], check=True)
    scene.nothing_left()
