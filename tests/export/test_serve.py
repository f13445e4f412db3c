"""`serve` and real NBD clients: nbdinfo, nbdcopy, qemu-img, fio; the image comes from a real docker-registry."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import nbdclient
from tests.support.fakeregistry import FakeRegistry, stall
from tests.support.images import FakePusher, Images, Layer, Published, push_image
from tests.support.nbdclient import CMD_DISC, OPT_GO, Client, go_data
from tests.support.needs import need
from tests.support.realregistry import LoggingRegistry
from tests.support.scene import Scene, until

MIB = 1 << 20


class Served:
    """A running `serve`. `path` of its Unix socket, or "" and `tcp`: host and port."""

    def __init__(self, process: subprocess.Popen[str], url: str):
        self.process = process
        self.url = url
        host_port = re.fullmatch(r"nbd://([^:]+):(\d+)", url)
        self.path = "" if host_port else url.partition("socket=")[2]
        self.tcp = (host_port[1], int(host_port[2])) if host_port else ("", 0)

    def connect(self) -> Client:
        sock = socket.socket(socket.AF_UNIX if self.path else socket.AF_INET, socket.SOCK_STREAM)
        sock.connect(self.path or self.tcp)
        client = Client(sock)
        sock.settimeout(20)
        client.greet()
        client.negotiate(OPT_GO, go_data(""))
        return client

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit status, and what it wrote to standard error."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


@contextlib.contextmanager
def serving(scene: Scene, source: str | Path, *options: str, where: tuple[str, str] | None = None) -> Iterator[Served]:
    """Until the end of the with statement; then a SIGTERM ends it, with status 0 and without a word."""
    given = ["-o", ",".join([f"oci.cache={scene.cache}", *options])] if not str(source).startswith("/") else []
    flag, address = where or ("--unix", str(scene.directory / "socket"))
    process = scene.start("serve", flag, address, *given, source)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("ready: "):
            pytest.fail(f"it says {line!r} and {process.communicate(timeout=30)}")
        served = Served(process, line.removeprefix("ready: ").rstrip("\n"))
        yield served
        if process.poll() is None:
            assert served.end() == (0, "")
    finally:
        process.kill()
        process.communicate()
    assert scene.leftovers() == []


def run(program: str, package: str, *arguments: str | Path) -> str:
    done = subprocess.run([need(program, package), *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"
    return done.stdout


both_addresses = pytest.mark.parametrize("flag", ["--unix", "--tcp"])


def address(scene: Scene, flag: str) -> tuple[str, str]:
    return (flag, str(scene.directory / "socket") if flag == "--unix" else "127.0.0.1:0")


@both_addresses
def test_nbdinfo(scene: Scene, published: Published, images: Images, flag: str) -> None:
    with serving(scene, published.plain, where=address(scene, flag)) as served:
        info = json.loads(run("nbdinfo", "libnbd-bin", "--json", served.url))
        export = info["exports"][0]
        assert export["export-size"] == images.plain.stat().st_size
        assert export["is_read_only"] is True
        assert export["can_multi_conn"] is True
        assert not any(export[f"can_{what}"] for what in ("trim", "zero", "fua", "flush"))
        assert published.plain in json.dumps(json.loads(run("nbdinfo", "libnbd-bin", "--json", "--list", served.url)))


@both_addresses
def test_nbdcopy_cold_and_warm(
    scene: Scene, published: Published, images: Images, registry: LoggingRegistry, flag: str
) -> None:
    copies = [scene.directory / name for name in ("cold", "warm", "cold again")]
    with serving(scene, published.plain, where=address(scene, flag)) as served:
        run("nbdcopy", "libnbd-bin", served.url, copies[0])
        before = len(registry.requests())
        run("nbdcopy", "libnbd-bin", served.url, copies[1])
        assert len(registry.requests()) == before
    with serving(scene, published.plain, where=address(scene, flag)) as served:
        run("nbdcopy", "libnbd-bin", served.url, copies[2])
        assert len(registry.requests()) == before  # a new process, the same cache
    for copy in copies:
        assert copy.read_bytes() == images.plain.read_bytes()
        copy.unlink()


@pytest.mark.parametrize("name", ["plain", "lz4"])
def test_qemu_img_compare(scene: Scene, published: Published, images: Images, name: str) -> None:
    with serving(scene, getattr(published, name)) as served:
        url = f"nbd:unix:{served.path}"
        said = run("qemu-img", "qemu-utils", "compare", "-f", "raw", "-F", "raw", getattr(images, name), url)
        assert "identical" in said
        size = json.loads(run("qemu-img", "qemu-utils", "info", "--output=json", url))["virtual-size"]
        assert size == getattr(images, name).stat().st_size


@pytest.mark.parametrize("more", [1, 100, 511])
def test_qemu_img_converts_a_size_that_is_no_multiple_of_sectors(scene: Scene, images: Images, more: int) -> None:
    image, copy = scene.directory / "odd", scene.directory / "copy"
    data = images.other.read_bytes() + os.urandom(more)
    image.write_bytes(data)
    with serving(scene, image) as served:
        run("qemu-img", "qemu-utils", "convert", "-f", "raw", "-O", "raw", f"nbd:unix:{served.path}", copy)
    assert copy.read_bytes() == data + bytes(512 - more)
    copy.unlink()
    image.unlink()


@pytest.fixture(scope="session")
def pattern(work: Path) -> Path:
    """64 MiB that fio has written: each 4 KiB block holds a checksum and its own place."""
    path = work / "pattern"
    run(
        "fio", "fio", "--name=write", f"--filename={path}", "--size=64M", "--rw=write", "--bs=4k", "--ioengine=psync",
        "--verify=crc32c", "--do_verify=0", f"--aux-path={work}", "--output-format=terse",
    )  # fmt: skip
    return path


def verify(url: str, scene: Scene, *arguments: str) -> None:
    run(
        "fio", "fio", "--name=verify", "--ioengine=nbd", f"--uri={url}", "--size=63M", "--bs=4k", "--iodepth=64",
        "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", f"--aux-path={scene.directory}", *arguments,
    )  # fmt: skip


@pytest.mark.parametrize("rw", ["read", "randread"])
def test_fio_verifies_64_deep(scene: Scene, pattern: Path, registry: LoggingRegistry, rw: str) -> None:
    """Cold, by way of the registry: no superblock of EROFS is in the pattern, so it lies behind an image's."""
    with serving(scene, pattern_image(registry, pattern, rw)) as served:
        verify(served.url, scene, f"--rw={rw}", "--offset=1M")
        verify(served.url, scene, f"--rw={rw}", "--offset=1M")


def pattern_image(registry: LoggingRegistry, pattern: Path, tag: str) -> str:
    """An EROFS superblock in the first 1 MiB, then what fio wrote there."""
    head = bytearray(MIB)
    head[1024 : 1024 + 4] = (0xE0F5E1E2).to_bytes(4, "little")
    head[1024 + 12] = 12
    head[1024 + 36 : 1024 + 40] = (16).to_bytes(4, "little")  # blocks
    data = bytes(head) + pattern.read_bytes()[MIB:] + tag.encode() * 1024
    push_image(registry, "fio", tag, [Layer(data)])
    return f"{registry.host}/fio:{tag}"


def test_fio_verifies_four_connections_of_a_local_file(scene: Scene, pattern: Path, registry: LoggingRegistry) -> None:
    image = scene.directory / "image"
    with serving(scene, pattern_image(registry, pattern, "four"), where=("--tcp", "127.0.0.1:0")) as served:
        verify(served.url, scene, "--rw=randread", "--offset=1M", "--numjobs=4")
        run("nbdcopy", "libnbd-bin", "--connections=4", "--requests=64", served.url, image)
    with serving(scene, image) as served:
        verify(served.url, scene, "--rw=randread", "--offset=1M", "--numjobs=4")
    image.unlink()


def test_four_clients_with_odd_ranges_64_deep(scene: Scene, published: Published, images: Images) -> None:
    """Cold; each client keeps 64 reads of any alignment in flight and compares every byte."""
    data = images.plain.read_bytes()
    with serving(scene, published.plain) as served, ThreadPoolExecutor(4) as pool:

        def work(seed: int) -> int:
            chance = random.Random(seed)
            wanted: dict[int, tuple[int, int]] = {}
            with served.connect() as client:
                for _ in range(600):
                    length = chance.choice([1, 511, 4096, 5000, 70_000])
                    offset = chance.randrange(len(data) - length)
                    wanted[client.read(offset, length)] = (offset, length)
                    if len(wanted) == 64:
                        take(client, wanted)
                while wanted:
                    take(client, wanted)
                client.ask(CMD_DISC)
                assert client.at_end()
            return seed

        def take(client: Client, wanted: dict[int, tuple[int, int]]) -> None:
            reply = client.reply()
            offset, length = wanted.pop(reply.cookie)
            assert reply.error == 0
            assert reply.data == data[offset : offset + length]

        assert list(pool.map(work, range(4))) == [0, 1, 2, 3]


def test_requests_that_are_refused(scene: Scene, images: Images) -> None:
    size = images.other.stat().st_size
    with serving(scene, images.other) as served, served.connect() as client:
        assert client.call(nbdclient.CMD_WRITE, 0, 4, payload=b"evil").error == nbdclient.EPERM
        assert client.call(nbdclient.CMD_READ, size, 1).error == nbdclient.EINVAL
        assert client.call(nbdclient.CMD_READ, size - 1, 1).data == images.other.read_bytes()[-1:]
        client.ask(CMD_DISC)
        assert client.at_end()


# Its life


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_an_idle_one(scene: Scene, images: Images, number: int) -> None:
    with serving(scene, images.other) as served:
        assert served.end(number) == (0, "")
        assert not (scene.directory / "socket").exists()


def test_sigterm_lets_reads_under_way_end(scene: Scene, fake: FakeRegistry, images: Images) -> None:
    push_image(FakePusher(fake), "app", "1", [Layer(images.plain)])
    data = images.plain.read_bytes()
    with serving(scene, f"{fake.host}/app:1") as served, served.connect() as client:
        release, reached = threading.Event(), threading.Event()
        fake.default = stall(release, reached=reached)
        offset = len(data) - 5000
        cookie = client.read(offset, 5000)
        assert reached.wait(20)
        served.process.terminate()
        until(lambda: not accepts(served), "that it takes no more clients")
        assert served.process.poll() is None
        release.set()
        fake.default = lambda exchange: exchange.partial()
        reply = client.reply()
        assert (reply.cookie, reply.error, reply.data) == (cookie, 0, data[offset:])
        assert client.at_end()
        _, errors = served.process.communicate(timeout=30)
        assert served.process.returncode == 0
        assert "Traceback" not in errors


def accepts(served: Served) -> bool:
    """Whether somebody greets a new client."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(0.2)
        sock.connect(served.path)
        return bool(sock.recv(1))
    return False


def test_a_second_sigterm_does_not_wait(scene: Scene, fake: FakeRegistry, images: Images) -> None:
    push_image(FakePusher(fake), "app", "1", [Layer(images.plain)])
    release, reached = threading.Event(), threading.Event()
    with serving(scene, f"{fake.host}/app:1") as served, served.connect() as client:
        fake.default = stall(release, reached=reached)
        client.read(images.plain.stat().st_size - 10, 10)
        assert reached.wait(20)
        served.process.terminate()
        until(lambda: not accepts(served), "that it takes no more clients")
        status, errors = served.end()
        release.set()
        assert status == 0
        assert "Traceback" not in errors


def test_an_idle_client_does_not_hold_up_the_end(scene: Scene, images: Images) -> None:
    with serving(scene, images.other) as served, served.connect() as client:
        assert client.call(nbdclient.CMD_READ, 0, 1).error == 0
        status, errors = served.end()
        assert status == 0
        assert "Traceback" not in errors
        assert client.at_end()


def test_a_client_that_is_killed_disturbs_nobody(scene: Scene, images: Images) -> None:
    data = images.plain.read_bytes()
    with serving(scene, images.plain) as served, served.connect() as stays:
        for _ in range(5):
            client = served.connect()
            client.reads([(0, 8 * MIB)] * 8)
            client.receive(100)
            client.close()
        assert stays.call(nbdclient.CMD_READ, 5, 5000).data == data[5:5005]
        stays.ask(CMD_DISC)
        assert stays.at_end()
        status, errors = served.end()
        assert status == 0
        assert "Traceback" not in errors


def idle(served: Served, source: str = "127.0.0.1") -> socket.socket | None:
    """A connection that says nothing, from this address. None: it was refused."""
    sock = socket.create_connection(served.tcp, timeout=20, source_address=(source, 0))
    try:
        greeting = sock.recv(18, socket.MSG_WAITALL)
    except ConnectionResetError:
        greeting = b""
    if greeting:
        return sock
    sock.close()
    return None


def test_idle_connections_of_one_address_leave_others_alone(scene: Scene, images: Images) -> None:
    data = images.other.read_bytes()
    with serving(scene, images.other, where=("--tcp", "127.0.0.1:0")) as served, contextlib.ExitStack() as stack:
        taken = [sock for _ in range(300) if (sock := idle(served)) is not None]
        for sock in taken:
            stack.callback(sock.close)
        assert len(taken) == 256
        with idle(served, "127.0.0.2") or pytest.fail("nobody else is served") as sock:
            client = Client(sock)
            client.send(struct.pack(">I", 3))
            client.negotiate(OPT_GO, go_data(""))
            assert client.call(nbdclient.CMD_READ, 5, 100).data == data[5:105]
            client.ask(CMD_DISC)
            assert client.at_end()
        stack.close()
        status, errors = served.end()
        assert status == 0
        assert [line for line in errors.splitlines() if "refused" in line] == [
            "pyerofs: refused a connection from 127.0.0.1: it has 256 connections already"
        ]


def test_want_of_descriptors_is_waited_out(scene: Scene, images: Images) -> None:
    with serving(scene, images.other, where=("--tcp", "127.0.0.1:0")) as served:
        with served.connect() as client:
            used = len(os.listdir(f"/proc/{served.process.pid}/fd"))
            resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (used, used))
            waiting = socket.create_connection(served.tcp, timeout=20)
            until(lambda: _said(served, "cannot accept a connection"), "that it says so")
            assert client.call(nbdclient.CMD_READ, 0, 1).error == 0
            client.ask(CMD_DISC)
            assert client.at_end()
        with waiting:
            assert waiting.recv(8, socket.MSG_WAITALL) == b"NBDMAGIC"
        assert served.end()[0] == 0


def _said(served: Served, text: str) -> bool:
    """Whether a line of the log, the next one, has this text."""
    assert served.process.stderr is not None
    return text in served.process.stderr.readline()


# Where it listens


def fails(scene: Scene, status: int, text: str, *arguments: str | Path) -> None:
    done = scene.run("serve", *arguments)
    assert (done.status, done.out) == (status, ""), done.err
    assert text in done.error


def test_a_socket_is_for_its_owner_only(scene: Scene, images: Images) -> None:
    with serving(scene, images.other):
        assert (scene.directory / "socket").stat().st_mode & 0o777 == 0o600


def test_a_path_that_is_served_already(scene: Scene, images: Images) -> None:
    with serving(scene, images.other) as served:
        fails(scene, 1, "another server listens there", "--unix", scene.directory / "socket", images.plain)
        with served.connect() as client:
            assert client.call(nbdclient.CMD_READ, 0, 1).error == 0
            client.ask(CMD_DISC)
            assert client.at_end()
        status, errors = served.end()
        assert status == 0
        assert "Traceback" not in errors


def test_a_stale_socket_is_replaced(scene: Scene, images: Images) -> None:
    with serving(scene, images.other) as served:
        served.process.kill()
        served.process.wait()
    assert (scene.directory / "socket").is_socket()
    with serving(scene, images.other) as served, served.connect() as client:
        assert client.call(nbdclient.CMD_READ, 0, 1).error == 0
        client.ask(CMD_DISC)
        assert client.at_end()


def test_a_file_in_the_way_is_left_alone(scene: Scene, images: Images) -> None:
    path = scene.directory / "socket"
    path.write_text("precious")
    fails(scene, 1, str(path), "--unix", path, images.other)
    assert path.read_text() == "precious"


def test_a_port_that_is_taken(scene: Scene, images: Images) -> None:
    with serving(scene, images.other, where=("--tcp", "127.0.0.1:0")) as served:
        host, port = served.tcp
        fails(scene, 1, "in use", "--tcp", f"{host}:{port}", images.other)


@pytest.mark.parametrize("where", ["", "nothing", ":x", "127.0.0.1:70000", "nowhere.invalid:1"])
def test_addresses_that_are_none(scene: Scene, images: Images, where: str) -> None:
    fails(scene, 1, f"--tcp {where}", "--tcp", where, images.other)


def test_what_cannot_be_served_leaves_no_socket(scene: Scene, published: Published, images: Images) -> None:
    path = scene.directory / "socket"
    cache = f"oci.cache={scene.cache}"
    fails(scene, 32, "EROFS", "--unix", path, "-o", cache, published.liar)
    fails(scene, 32, "bytes", "--unix", path, "-o", cache, published.cut)
    fails(scene, 1, "mount", "--unix", path, "-o", "nosuid", published.plain)
    fails(scene, 1, "No such file", "--unix", path, "/no/such/image")
    fails(scene, 1, "No such file", "--unix", "/no/such/directory/socket", images.other)
    fails(scene, 1, "--unix", images.other)
    assert not path.exists()
    assert not os.path.lexists(path)
