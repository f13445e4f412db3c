"""The stage of one end-to-end test: runs commands, and knows everything that they may leave behind.

What runs is marked in its environment, so that the processes of other tests, or of the machine's owner, are no trouble.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from pyerofs.daemon import record
from pyerofs.kernel import mountpoint

MARK = "PYEROFS_TEST_SCENE"
TIMEOUT = 60.0  # seconds for a command
DEADLINE = 60.0  # seconds for what happens in the background, on a machine that may be emulated and busy


class Done(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that a command has for an error; anything else fails the test."""
        lines = self.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("pyerofs: "), f"not one line: {self.err!r}"
        assert "Traceback" not in self.err
        return lines[0].removeprefix("pyerofs: ")


def until(condition: Callable[[], object], what: str, deadline: float = DEADLINE) -> None:
    """Waits for something that another process does and that nothing can be waited for on."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"not within {deadline:g} s: {what}"
        time.sleep(0.02)


class Scene:
    """`directory` is this test's; `cache` in it, unless a command names another one."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.cache = directory / "cache"
        self.mnt = directory / "mnt"
        self.mnt.mkdir()
        self._before = {*_records(), *_nbd_devices()}
        self._started: list[subprocess.Popen[str]] = []

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, MARK: str(self.directory), "DOCKER_CONFIG": str(self.directory / "docker")}

    def argv(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "pyerofs", *map(str, arguments)]

    def run(
        self,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = (),
        cwd: Path | None = None,
    ) -> Done:
        """`PREFIX python -m pyerofs ARGUMENTS`, to its end."""
        done = subprocess.run(
            [*prefix, *self.argv(*arguments)],
            env={**self.environment, **(env or {})},
            cwd=cwd or self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def make(
        self, command: str, *arguments: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Done:
        """`convert` or `build`, with this scene's cache."""
        return self.run(command, "-o", f"oci.cache={self.cache}", *arguments, env=env, cwd=cwd)

    def start(self, *arguments: str | Path, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
        """Its pipes stay open until the end of the test."""
        process = subprocess.Popen(
            self.argv(*arguments),
            env=self.environment,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def mount(self, source: str | Path, *options: str, fstype: str = "erofs", target: Path | None = None) -> Done:
        """A local file or device; nothing but success will do."""
        done = self.run("mount", "-v", "-t", fstype, "-o", ",".join(["ro", *options]), source, target or self.mnt)
        assert (done.status, done.out) == (0, ""), done.err
        return done

    def mount_image(self, image: str, *options: str, fstype: str = "erofs", target: Path | None = None) -> Done:
        """With this scene's cache."""
        return self.mount(image, f"oci.cache={self.cache}", *options, fstype=fstype, target=target)

    def processes(self) -> dict[int, str]:
        """Command lines of the marked processes that live."""
        mark = f"{MARK}={self.directory}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                try:
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                except OSError:
                    continue  # it has ended
        return found

    def leftovers(self) -> list[str]:
        """What is there of mounts, processes, records, devices."""
        here = str(self.directory)
        records = {name for name in set(_records()) - self._before if not _is_anothers(name)}
        ours = (here, *(f"{record.DIRECTORY}/{name}" for name in records))
        left = [f"mount {m.target} of {m.source}" for m in mountpoint.mountinfo() if m.target.startswith(ours)]
        left += [f"process {pid}: {text}" for pid, text in self.processes().items()]
        left += [f"record {name}" for name in sorted(records)]
        left += [f"device {name}" for name in sorted(set(_nbd_devices()) - self._before)]
        left += [f"device {name} on {file}" for name, file in _loop_devices() if file.startswith(here)]
        return left

    def nothing_left(self) -> None:
        end = time.monotonic() + DEADLINE
        while left := self.leftovers():
            assert time.monotonic() < end, "left behind: " + "; ".join(left)
            time.sleep(0.02)

    def clean(self) -> None:
        """After a test that failed; whatever is done here, it has failed already."""
        for mount in reversed(mountpoint.mountinfo()):
            if mount.target.startswith(str(self.directory)):
                subprocess.run(["umount", "-l", mount.target], check=False)
        for pid in self.processes():
            subprocess.run(["kill", "-9", str(pid)], check=False)
        for process in self._started:
            with process:  # which waits for it, and closes its pipes
                process.kill()


def _records() -> list[str]:
    return os.listdir(record.DIRECTORY) if Path(record.DIRECTORY).exists() else []


def _is_anothers(name: str) -> bool:
    """pyerofs-PID-TIME of a process that lives, and that is not of this scene (or it would be in the list itself)."""
    return Path(f"/proc/{name.split('-')[1]}").exists()


def _loop_devices() -> list[tuple[str, str]]:
    return [
        (path.parent.parent.name, path.read_text().strip())
        for path in Path("/sys/block").glob("loop*/loop/backing_file")
    ]


def _nbd_devices() -> list[str]:
    return [path.parent.name for path in Path("/sys/block").glob("nbd*/size") if path.read_text() != "0\n"]


# The ways of unmounting what is at the scene's mount point.


def by_umount(scene: Scene) -> object:
    return subprocess.run(["umount", scene.mnt], check=True)


def by_pyerofs(scene: Scene) -> object:
    done = scene.run("umount", scene.mnt)
    assert done == Done(0, "", "")
    assert scene.processes() == {}  # it waits for the daemon's end
    scene.nothing_left()
    return done


def by_mount_u(scene: Scene) -> object:
    done = scene.run("mount", "-u", scene.mnt)
    assert done == Done(0, "", "")
    assert scene.leftovers() == []
    return done
