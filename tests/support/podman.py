"""Real podman with directories of its own, and an image store of pyerofs beside them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from pyerofs.kernel import mountpoint
from tests.support.needs import need, need_root

# Without CAP_SYS_RESOURCE no limit can be raised, and podman would raise these.
_CONTAINER = ("--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")


class Podman:
    """What it makes lies in a directory of its own, whose name is short: podman wants that. Until close()."""

    def __init__(self, store: Path | None = None, config: Path | None = None) -> None:
        need_root()
        need("runc", "runc")
        directory = Path(tempfile.mkdtemp(prefix="podman-", dir="/tmp"))
        self._directory = directory
        self.root = directory / "root"
        self._environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(directory)}
        if config:
            self._environment["CONTAINERS_CONF"] = str(config)
        self._command = [
            need("podman", "podman"), "--runtime", "runc", "--cgroup-manager", "cgroupfs",
            "--events-backend", "file", "--storage-driver", "overlay", "--root", str(self.root),
            "--runroot", str(directory / "run"), "--tmpdir", str(directory / "tmp"),
            *(("--storage-opt", f"additionalimagestore={store}") if store else ()),
        ]  # fmt: skip

    def __call__(self, *arguments: str | Path) -> str:
        """What it prints; nothing but success will do."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [*self._command, *map(str, arguments)]
        return subprocess.run(
            command, env=self._environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
        )

    def container(self, *arguments: str | Path) -> str:
        """Run one that is removed again."""
        return self("run", "--rm", *_CONTAINER, *arguments)

    def create(self, name: str, *arguments: str) -> str:
        return self("create", "--name", name, *_CONTAINER, *arguments)

    def close(self) -> None:
        for mount in reversed(mountpoint.mountinfo()):
            if mount.target.startswith(str(self._directory)):
                mountpoint.umount(mount.target, mountpoint.MNT_DETACH)
        shutil.rmtree(self._directory)
