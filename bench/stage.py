"""What everything is measured on: an EROFS image of 340 MiB in a docker-registry, made by the host's own files.

Images are laid into the registry's storage as files, which costs no upload and lets a blob be larger than the disk. So
an image's digest need not be a blob's real one (a sparse blob of 100 GiB is not hashed); the manifest's is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pyerofs.erofs import chunk_index

MIB = 1 << 20
SIZE = 340 * MIB  # of the image
BIG = 32 * MIB  # of the file /big in it
SMALL = 16 * MIB  # of each of the many images
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMPORTS = "import argparse, asyncio, concurrent.futures, decimal, json, logging.config, unittest, xml.dom.minidom"

_CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {storage}, maxthreads: 200}}
http: {{addr: "127.0.0.1:{port}"}}
"""


class Blob(NamedTuple):
    path: Path
    digest: str
    size: int


class Image(NamedTuple):
    """`repository`:1.0 in whatever registry runs on the storage; one layer."""

    repository: str
    blob: Blob

    def reference(self, host: str) -> str:
        return f"{host}/{self.repository}:1.0"

    def blob_path(self) -> str:
        return f"/v2/{self.repository}/blobs/{self.blob.digest}"

    def url(self, host: str) -> str:
        return f"http://{host}{self.blob_path()}"


class Storage:
    """The files of a docker-registry, written without it."""

    def __init__(self, directory: Path):
        self.directory = directory
        self._root = directory / "docker/registry/v2"

    def add(self, repository: str, blob: Blob, annotations: dict[str, str] | None = None) -> Image:
        system = json.dumps({"os": "linux", "architecture": "amd64"}).encode()
        config = self._keep(repository, system)
        digest = blob.digest
        self._link(repository, "_layers", digest)
        target = self._data(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            os.link(blob.path, target)
        layer: dict[str, Any] = {"mediaType": "application/vnd.erofs", "digest": digest, "size": blob.size}
        layer["annotations"] = annotations or {}
        text = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}
        manifest = str(self._keep(repository, json.dumps(text).encode())["digest"])
        name, value = "_manifests", manifest.removeprefix("sha256:")
        self._link(repository, f"{name}/revisions", manifest)
        self._link(repository, f"{name}/tags/1.0/index", manifest)
        current = self._root / "repositories" / repository / name / "tags/1.0/current/link"
        current.parent.mkdir(parents=True, exist_ok=True)
        current.write_text(f"sha256:{value}")
        return Image(repository, blob)

    def _keep(self, repository: str, data: bytes) -> dict[str, object]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self._data(digest).parent.mkdir(parents=True, exist_ok=True)
        self._data(digest).write_bytes(data)
        self._link(repository, "_layers", digest)
        return {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": len(data)}

    def _data(self, digest: str) -> Path:
        value = digest.removeprefix("sha256:")
        return self._root / "blobs/sha256" / value[:2] / value / "data"

    def _link(self, repository: str, where: str, digest: str) -> None:
        link = self._root / "repositories" / repository / where / "sha256" / digest.removeprefix("sha256:") / "link"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.write_text(digest)


@contextlib.contextmanager
def registry(storage: Path, work: Path) -> Iterator[int]:
    """A docker-registry on that storage; the port on loopback that it listens on."""
    config, log, port = work / "registry.yml", work / "registry.log", _free_port()
    config.write_text(_CONFIG.format(storage=storage, port=port))
    with log.open("wb") as output:
        command = ["docker-registry", "serve", str(config)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    try:
        _await(port, process, "docker-registry")
        yield port
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


_NGINX = """\
daemon off; pid {work}/nginx.pid; error_log stderr error; worker_processes 2;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
  client_body_temp_path {work}/nginx.tmp; proxy_temp_path {work}/nginx.tmp; fastcgi_temp_path {work}/nginx.tmp;
  uwsgi_temp_path {work}/nginx.tmp; scgi_temp_path {work}/nginx.tmp;
  server {{
    listen 127.0.0.1:{port};
    location /v2/ {{ root {work}/static; default_type application/octet-stream; }}
    location ~ ^/v2/.*/manifests/ {{ root {work}/static; default_type {manifest}; }}
  }}
}}
"""


@contextlib.contextmanager
def static(storage: Path, work: Path) -> Iterator[int]:
    """The same images from nginx, which costs next to nothing a request; the port on loopback."""
    port, root = _free_port(), storage / "docker/registry/v2"
    shutil.rmtree(work / "static", ignore_errors=True)
    for link in root.glob("repositories/**/link"):
        repository, kind = str(link.parent).removeprefix(f"{root}/repositories/").split("/_", 1)
        digest = link.read_text().strip().removeprefix("sha256:")
        names = [f"manifests/sha256:{digest}", "manifests/1.0"] if "current" in kind else [f"blobs/sha256:{digest}"]
        for name in names:
            target = work / "static/v2" / repository / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            os.link(root / "blobs/sha256" / digest[:2] / digest / "data", target)
    config = work / "nginx.conf"
    config.write_text(_NGINX.format(work=work, port=port, manifest=MANIFEST))
    process = subprocess.Popen(["nginx", "-e", "stderr", "-c", str(config)], stdin=subprocess.DEVNULL)
    try:
        _await(port, process, "nginx")
        yield port
    finally:
        process.terminate()
        process.wait()


def _await(port: int, process: subprocess.Popen[bytes], name: str) -> None:
    deadline = time.monotonic() + 120  # an emulated machine takes its time
    while not _listens(port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{name} does not start")
        time.sleep(0.02)


class Stage:
    """The images and a running registry. Everything lies in `work`; what is there already is used again."""

    def __init__(self, work: Path, port: int, storage: Storage):
        self.work = work
        self.port = port
        self.host = f"127.0.0.1:{port}"
        self.storage = storage
        self.image = storage.add("app/big", _made(work / "image.erofs", make_image))
        self._fresh = 0

    def directory(self) -> Path:
        """A new one, on the same filesystem as everything else."""
        self._fresh += 1
        path = self.work / f"run-{os.getpid()}-{self._fresh}"
        path.mkdir()
        return path

    def small(self, number: int) -> Image:
        """One of many different images."""
        blob = _made(self.work / f"small-{number}.erofs", lambda path: make_small(path, number))
        return self.storage.add(f"app/small{number}", blob)

    def indexed(self) -> Image:
        """The image with its chunk index behind it."""
        with self.image.blob.path.open("rb") as file:
            index = chunk_index.build(file.read)

        def make(path: Path) -> None:
            shutil.copyfile(self.image.blob.path, path)
            with path.open("ab") as file:
                file.write(index)

        blob = _made(self.work / "indexed.erofs", make)
        return self.storage.add("app/indexed", blob, chunk_index.describe(self.image.blob.size, index))

    def sparse(self, size: int) -> Image:
        """The first MiB of the image with a hole behind it; its digest is not that of its bytes."""
        path = self.work / "sparse.erofs"
        if not path.exists():
            path.write_bytes(self.image.blob.path.read_bytes()[:MIB])
            os.truncate(path, size)
        return self.storage.add("app/sparse", Blob(path, f"sha256:{hashlib.sha256(b'sparse').hexdigest()}", size))


@contextlib.contextmanager
def stage(work: Path) -> Iterator[Stage]:
    storage = Storage(work / "storage")
    storage.directory.mkdir(parents=True, exist_ok=True)
    with registry(storage.directory, work) as port:
        yield Stage(work, port, storage)


def _made(path: Path, make: Callable[[Path], None]) -> Blob:
    if not path.exists():
        make(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Blob(path, f"sha256:{digest}", path.stat().st_size)


def make_image(path: Path) -> None:
    """A Python that runs from it, the file /big, and files of all sizes, up to SIZE bytes in all."""
    root = path.with_suffix(".tree")
    shutil.rmtree(root, ignore_errors=True)
    (root / "data").mkdir(parents=True)
    _copy_python(root)
    chance = random.Random(5)
    with (root / "big").open("wb") as file:
        for _ in range(BIG // MIB):
            file.write(chance.randbytes(MIB))
    left = SIZE - MIB - sum((f.lstat().st_size + 4095) // 4096 * 4096 + 64 for f in root.rglob("*") if f.is_file())
    number = 0
    while left > 0:
        size = min(left, int(4096 * 2 ** chance.uniform(0, 11)))
        directory = root / "data" / str(number // 100)
        directory.mkdir(exist_ok=True)
        (directory / str(number)).write_bytes(chance.randbytes(size))
        left -= (size + 4095) // 4096 * 4096 + 64
        number += 1
    _mkfs(root, path)
    os.truncate(path, SIZE)  # the few bytes that are missing: a hole behind the filesystem


def make_small(path: Path, number: int) -> None:
    root = path.with_suffix(".tree")
    root.mkdir()
    (root / "file").write_bytes(random.Random(number).randbytes(SMALL - 2 * 4096))
    _mkfs(root, path)


def _mkfs(root: Path, path: Path) -> None:
    made = path.with_suffix(".part")
    subprocess.run(["mkfs.erofs", "-T0", made, root], check=True, capture_output=True)
    made.rename(path)
    shutil.rmtree(root)


def _copy_python(root: Path) -> None:
    """Debian's python3 with its libraries at their places: `chroot ROOT /usr/bin/python3` runs."""
    program = Path("/usr/bin/python3").resolve()
    library = Path("/usr/lib") / program.name
    shutil.copytree(library, root / library.relative_to("/"), symlinks=True)
    (root / "usr/bin").mkdir(parents=True)
    shutil.copy2(program, root / "usr/bin/python3")
    for directory in ("lib", "lib64"):
        (root / directory).symlink_to(f"usr/{directory}")
    for name in [program, *(library / "lib-dynload").glob("*.so")]:
        listed = subprocess.run(["ldd", name], capture_output=True, text=True, check=True).stdout
        for found in re.findall(r"(/\S+) \(0x", listed):
            target = root / "usr" / os.path.relpath(re.sub("^/usr", "", found), "/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                shutil.copy2(found, target)
