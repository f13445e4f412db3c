"""containerd, runc and the snapshotter over real NBD devices: containers read on, whoever is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from pyerofs.daemon.record import Record, read_all
from tests.support.containerdstage import ContainerdStage
from tests.support.cri import Cri
from tests.support.realregistry import LoggingRegistry
from tests.support.scene import Scene, until
from tests.support.shelf import DIGEST, SLEEP, fill_shelf, read


def record_of(stage: ContainerdStage) -> Record:
    [record] = [record for record in read_all(dead=True) if record.target.startswith(str(stage.root))]
    return record


def devices() -> list[str]:
    return [path.parent.name for path in Path("/sys/block").glob("nbd*/size") if path.read_text() != "0\n"]


def test_containers_read_on_over_nbd(scene: Scene, registry: LoggingRegistry) -> None:
    shelf = fill_shelf(registry, scene.directory / "shelf", few=True)
    before = devices()
    with ContainerdStage(scene.directory, registry.host, shelf.pause) as stage, Cri(stage.address) as cri:
        stage.end(stage.snapshotter)
        stage.start_snapshotter("--idle", "2")  # which looks after the mounts each second
        until(lambda: cri.pulled(shelf.dual), "that containerd has found the snapshotter")
        container = cri.run(cri.run_pod("nbd"), "c", shelf.dual, *SLEEP)
        assert read(cri, container) == DIGEST
        record = record_of(stage)
        assert (record.driver, record.how, len(record.parts)) == ("nbd", "netlink", 3)
        os.kill(record.pid, signal.SIGKILL)  # its supervisor starts another one
        until(lambda: record_of(stage).restarts == 1 and record_of(stage).alive(), "that it has another worker")
        assert cri.exec(container, "/bin/sh", "-c", "md5sum < /data/large").status == 0
        stage.kill(stage.snapshotter)
        record = record_of(stage)
        for pid in (record.supervisor, record.pid):
            os.kill(pid, signal.SIGKILL)
        stage.start_snapshotter("--idle", "2")  # a container needs it: it gets a worker again
        until(lambda: record_of(stage).alive(), "that it has a worker again")
        assert read(cri, container) == DIGEST
        cri.clear()
        stage.collected()
        until(lambda: devices() == before, "that the devices are free")
