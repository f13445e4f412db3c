"""containerd with pyerofs as its snapshotter, for one test: every directory and socket of its own.

It is the one of PATH: Debian 12's 1.6 as a rule. `PATH=DIR:$PATH pytest tests/system/test_containerd.py` tries another.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pyerofs.errors import PyerofsError
from pyerofs.grpc.client import GrpcClient
from pyerofs.kernel import mountpoint
from pyerofs.snapshotter import protocol
from pyerofs.snapshotter.configuration import render
from tests.support.needs import need
from tests.support.ordinary import Member, directory, file
from tests.support.scene import DEADLINE, MARK, until
from tests.support.tarballs import archive

_HEAD = """
root = "{root}/root"
state = "{root}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs"]
{ours}
[grpc]
  address = "{root}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/opt"
"""

CONFIG_V2 = (
    _HEAD
    + """\
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  disable_apparmor = true
  sandbox_image = "{pause}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{root}/cni"
    conf_dir = "{root}/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{root}/certs.d"
"""
)

CONFIG_V3 = (
    _HEAD
    + """\
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause}"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "{root}/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{root}/cni"]
    conf_dir = "{root}/cni"
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
[plugins."io.containerd.transfer.v1.local"]
  config_path = "{root}/certs.d"
"""
)


def busybox() -> list[Member]:
    """A root directory with a shell, which sleeps unless it is told something."""
    program = Path(need("busybox", "busybox-static")).read_bytes()
    names = ("sh", "cat", "sleep", "md5sum", "ls", "touch", "stat", "echo", "true", "id")
    return [
        *(directory(name) for name in ("bin", "etc", "proc", "sys", "dev", "tmp", "data")),
        *(file(f"bin/{name}", program, mode=0o755) if name == "sh" else _link(f"bin/{name}") for name in names),
        file("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n"),
        file("etc/os-release", b"NAME=busybox\n"),
    ]


def _link(name: str) -> Member:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = tarfile.LNKTYPE, "bin/sh", 0o755  # engines give the file this mode
    return made, b""


def layer(*members: Member) -> bytes:
    return archive(*members)


class ContainerdStage:
    """`registry`: host:port, plain HTTP. Owns containerd and the snapshotter until the end."""

    def __init__(
        self, directory: Path, registry: str, pause: str, options: Sequence[str] = (), *, snapshotter: str = "pyerofs"
    ) -> None:
        need("runc", "runc")
        self.root = directory / "c"
        self.root.mkdir()
        self.registry = registry
        self._options = options
        self._log = (directory / "snapshotter.log").open("a+")
        self._containerd_log = (directory / "containerd.log").open("a+")
        self._environment = {**os.environ, MARK: str(directory)}
        self.snapshotter: subprocess.Popen[bytes] | None = None
        self.containerd: subprocess.Popen[bytes] | None = None
        certificates = self.root / "certs.d" / registry
        certificates.mkdir(parents=True)
        (certificates / "hosts.toml").write_text(
            f'server = "http://{registry}"\n[host."http://{registry}"]\n  capabilities = ["pull", "resolve"]\n'
        )
        said = subprocess.run(
            [need("containerd", "containerd"), "--version"], capture_output=True, text=True, check=True
        )
        self.version = said.stdout.split()[2].removeprefix("v")
        ours = render(self.version, str(self.root / "snapshotter"), str(self.root / "s.sock"))
        config = (CONFIG_V2 if self.version.startswith("1.") else CONFIG_V3).format(
            root=self.root, pause=pause, ours=ours
        )
        config = config.replace('snapshotter = "pyerofs"', f'snapshotter = "{snapshotter}"')
        (self.root / "config.toml").write_text(config)

    @property
    def address(self) -> str:
        return str(self.root / "containerd.sock")

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def __enter__(self) -> Self:
        try:
            self.start_snapshotter()
            self.start_containerd()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self.containerd, self.snapshotter):
            if process is not None:
                process.terminate()
                process.wait(DEADLINE)
        for mark in self.shims():
            os.kill(mark, signal.SIGKILL)
        for mount in reversed(mountpoint.mountinfo()):
            if mount.target.startswith(str(self.root)):
                subprocess.run(["umount", "-l", mount.target], check=False)
        self._log.close()
        self._containerd_log.close()

    def start_snapshotter(self, *arguments: str) -> None:
        """Start it; return when it serves."""
        options = ",".join(["oci.insecure", f"oci.cache={self.cache}", *self._options])
        self.snapshotter = subprocess.Popen(
            [sys.executable, "-m", "pyerofs", "containerd", "--root", str(self.root / "snapshotter"),
             "--address", str(self.root / "s.sock"), "-o", options, *arguments],
            env=self._environment, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
        )  # fmt: skip
        until(self.serves, "that the snapshotter serves")

    def serves(self) -> bool:
        assert self.snapshotter is None or self.snapshotter.poll() is None, self.log()
        try:
            self.snapshots()
        except PyerofsError:
            return False
        return True

    def start_containerd(self) -> None:
        self.containerd = subprocess.Popen(
            ["containerd", "-c", str(self.root / "config.toml"), "-l", "info"],
            env=self._environment, stdin=subprocess.DEVNULL, stdout=self._containerd_log, stderr=self._containerd_log,
        )  # fmt: skip

        def up() -> bool:
            assert self.containerd is not None and self.containerd.poll() is None, "containerd has ended"
            client = GrpcClient(self.address)
            try:
                client.call("/runtime.v1.RuntimeService/Status", b"", 5.0)
            except PyerofsError:
                return False
            finally:
                client.close()
            return True

        until(up, "that containerd serves")

    def kill(self, process: subprocess.Popen[bytes] | None) -> None:
        assert process is not None
        process.kill()
        process.wait(DEADLINE)

    def end(self, process: subprocess.Popen[bytes] | None) -> None:
        assert process is not None
        process.terminate()
        assert process.wait(DEADLINE) == 0, self.log()

    def log(self) -> str:
        """Return what the snapshotter has said so far."""
        return Path(self._log.name).read_text()

    def snapshots(self) -> dict[str, dict[str, object]]:
        """Return what the snapshotter knows, by name."""
        client = GrpcClient(str(self.root / "s.sock"))
        try:
            found = {}
            for part in client.stream(f"{protocol.SERVICE}List", b"", 10.0):
                for info in protocol.LIST_RESPONSE.decode(part)["info"]:
                    found[info["name"]] = info
            return found
        finally:
            client.close()

    def mounts(self) -> list[str]:
        """Return where the snapshotter has images mounted."""
        where = str(self.root / "snapshotter")
        return [mount.target for mount in mountpoint.mountinfo() if mount.target.startswith(where)]

    def workers(self) -> list[int]:
        return self._marked("pyerofs.daemon.worker")

    def shims(self) -> list[int]:
        return self._marked("containerd-shim")

    def _marked(self, what: str) -> list[int]:
        mark = f"{MARK}={self.root.parent}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if not entry.name.isdecimal() or what.encode() not in (entry / "cmdline").read_bytes():
                    continue
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def ctr(self, *arguments: str, namespace: str = "default", check: bool = True) -> str:
        """Run ctr(8), and return what it prints."""
        done = subprocess.run(
            ["ctr", "-a", self.address, "-n", namespace, *arguments],
            env=self._environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{done.stderr}\n{self.log()}"
        return done.stdout

    def collected(self) -> None:
        """Wait until what containerd does not need any more has gone: its snapshots, mounts, workers, directories."""

        def gone() -> bool:
            left = list((self.root / "snapshotter" / "snapshots").iterdir())
            return not (self.mounts() or self.workers() or left or self.snapshots())

        until(gone, "that containerd has collected everything")
