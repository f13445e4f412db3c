"""pyerofs.kernel.nbd and pyerofs.kernel.netlink against the nbd driver of a real kernel."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyerofs.errors import MountError, UnavailableError, UsageError
from pyerofs.kernel import mountpoint, nbd, nbd_node, netlink
from tests.guest.nbdserver import FLAG_MULTI_CONN, FLAGS_READ_ONLY, Server

Attach = Callable[..., nbd.NBDDevice]

DATA = random.Random(7).randbytes((1 << 20) + 3 * 512)
both_ways = pytest.mark.parametrize("how", ["netlink", "ioctl"])


def content(path: str) -> bytes:
    return Path(path).read_bytes()


def sysfs(device: nbd.NBDDevice, name: str) -> str:
    return Path(f"/sys/block/nbd{device.index}/{name}").read_text().strip()


def await_size(index: int, size: int) -> None:
    deadline = time.monotonic() + 5
    while int(Path(f"/sys/block/nbd{index}/size").read_text()) * 512 != size:
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Reader(threading.Thread):
    """Reads the first 4 KiB of a device around the page cache; `result` is the bytes or the error."""

    def __init__(self, path: str) -> None:
        super().__init__(daemon=True)
        self.path = path
        self.result: bytes | OSError | None = None
        self.seconds = 0.0

    def run(self) -> None:
        started = time.monotonic()
        try:
            self.result = content(self.path)[:4096]
        except OSError as error:
            self.result = error
        self.seconds = time.monotonic() - started


@pytest.fixture
def erofs_image() -> bytes:
    tree = Path("/run/tree")
    tree.mkdir(exist_ok=True)
    (tree / "hello").write_bytes(DATA)
    subprocess.run(["mkfs.erofs", "/run/image", tree], check=True, capture_output=True)
    return Path("/run/image").read_bytes()


@both_ways
def test_bytes_size_and_settings(attach: Attach, how: str) -> None:
    server = Server(DATA)
    device = attach(server, how=how)
    assert device.how == how
    assert content(device.path) == DATA
    assert sysfs(device, "ro") == "1"
    assert sysfs(device, "queue/logical_block_size") == "512"
    assert sysfs(device, "queue/io_timeout") == "1000"
    assert device.untuned == []
    assert nbd_node.backend_of(device.path) == ("test" if how == "netlink" else None)
    device.disconnect()
    assert server.disc.wait(5)
    assert server.ended.wait(5)
    await_size(device.index, 0)
    assert nbd_node.backend_of(device.path) is None
    device.disconnect()


@both_ways
def test_tail_below_a_sector_is_left_out(attach: Attach, how: str) -> None:
    device = attach(Server(DATA[:-100]), how=how)
    assert content(device.path) == DATA[:-512]


def test_auto_is_netlink_here(attach: Attach) -> None:
    assert nbd.load_module()
    assert attach(Server(DATA)).how == "netlink"


@pytest.mark.qemu
def test_netlink_reaches_nbd_from_another_network_namespace(attach: Attach) -> None:
    found: list[object] = []

    def elsewhere() -> None:
        assert ctypes.CDLL(None).unshare(0x40000000) == 0  # CLONE_NEWNET, of this thread only
        device = attach(Server(DATA))
        found.extend((device.how, content(device.path) == DATA))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == ["netlink", True]


def test_auto_is_ioctl_where_the_family_is_missing(attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "_FAMILY", b"nbx\0")
    server = Server(DATA)
    with pytest.raises(UnavailableError, match="over netlink"):
        nbd.attach(server.kernel_ends, len(DATA), FLAGS_READ_ONLY, "test", how="netlink")
    device = attach(server)
    assert (device.how, content(device.path)) == ("ioctl", DATA)
    nbd.disconnect(device.path)
    assert server.ended.wait(5)
    await_size(device.index, 0)


@pytest.mark.qemu
def test_several_connections(attach: Attach) -> None:
    server = Server(DATA * 8, connections=4)
    device = attach(server, flags=FLAGS_READ_ONLY | FLAG_MULTI_CONN)
    readers = [threading.Thread(target=content, args=(device.path,)) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert content(device.path) == DATA * 8
    assert sum(1 for reads in server.reads if reads) > 1  # a queue of the block layer to each; this guest has 2 CPUs


def test_several_connections_need_netlink() -> None:
    server = Server(DATA, connections=2)
    with pytest.raises(UsageError, match="2 connections"):
        nbd.attach(server.kernel_ends, len(DATA), FLAGS_READ_ONLY, "test", how="ioctl")


@both_ways
def test_two_attaches_get_two_devices(attach: Attach, how: str) -> None:
    first, second = attach(Server(DATA), how=how), attach(Server(DATA[::-1][:-512]), how=how)
    assert first.index != second.index
    assert (content(first.path), content(second.path)) == (DATA, DATA[::-1][:-512])


@both_ways
def test_attaches_at_once_get_a_device_each(attach: Attach, how: str) -> None:
    devices: list[nbd.NBDDevice] = []
    start = threading.Barrier(6)

    def one() -> None:
        start.wait()
        devices.append(attach(Server(DATA), how=how))

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({device.index for device in devices}) == 6
    assert all(content(device.path) == DATA for device in devices)


@pytest.mark.parametrize("first", ["netlink", "ioctl"])
@both_ways
def test_a_named_device_in_use_is_refused(attach: Attach, how: str, first: str) -> None:
    device = attach(Server(DATA), how=first, device="/dev/nbd5")
    assert device.path == "/dev/nbd5"
    with pytest.raises(MountError, match="/dev/nbd5 is in use"):
        attach(Server(DATA), how=how, device="/dev/nbd5")
    assert content("/dev/nbd5") == DATA


def test_when_all_are_in_use_ioctl_says_so_and_netlink_makes_one(attach: Attach) -> None:
    free = len([index for index, connected in netlink.status() if not connected])
    for _ in range(free):
        attach(Server(DATA), how="ioctl")
    with pytest.raises(UnavailableError, match="every NBD device is in use"):
        attach(Server(DATA), how="ioctl")
    assert content(attach(Server(DATA), how="netlink").path) == DATA


@both_ways
def test_a_missing_node_is_made(attach: Attach, how: str) -> None:
    Path("/dev/nbd7").unlink()
    assert content(attach(Server(DATA), how=how, device="/dev/nbd7").path) == DATA


@pytest.mark.parametrize("name", ["/dev/loop0", "/dev/nbdx", "", "/dev/nbd0p1", "/dev/nbd9999999"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="not the name of an NBD device"):
        nbd.attach([0], 4096, FLAGS_READ_ONLY, "test", device=name)


@both_ways
def test_a_descriptor_that_is_no_socket_leaves_nothing(how: str) -> None:
    with Path("/dev/null").open() as null, pytest.raises(MountError, match="refused"):
        nbd.attach([null.fileno()], 4096, FLAGS_READ_ONLY, "test", how=how, device="/dev/nbd6")
    assert (6, False) in netlink.status()
    await_size(6, 0)


def test_status(attach: Attach) -> None:
    device = attach(Server(DATA))
    assert (device.index, True) in netlink.status()
    device.disconnect()
    assert (device.index, False) in netlink.status()


def test_in_use_is_an_exclusive_open(attach: Attach) -> None:
    device = attach(Server(DATA))
    assert not device.in_use()
    fd = os.open(device.path, os.O_RDONLY | os.O_EXCL)
    assert device.in_use()
    os.close(fd)
    assert not device.in_use()


def test_settle_has_a_deadline(attach: Attach) -> None:
    device = attach(Server(DATA))
    device.size += 512
    with pytest.raises(MountError, match=r"has 1050112 bytes after 0\.1 s, not 1050624"):
        device.settle(0.1)


@both_ways
def test_umount_is_learnt_by_event_and_ends_the_server(attach: Attach, erofs_image: bytes, how: str) -> None:
    server = Server(erofs_image)
    device = attach(server, how=how)
    target = Path("/mnt/here")
    target.mkdir(exist_ok=True)
    with mountpoint.MountWatch() as watch:
        mountpoint.mount(device.path, str(target), "erofs", mountpoint.MS_RDONLY)
        assert device.set_disconnect_on_close() == (how == "netlink")
        assert device.in_use()
        assert (target / "hello").read_bytes() == DATA
        mount = mountpoint.find(str(target))
        assert mount and mountpoint.is_mounted_device(mount.device)
        assert not server.disc.is_set()
        mountpoint.umount(str(target))
        import select

        poll = select.poll()
        poll.register(watch, watch.EVENTS)
        assert poll.poll(5000)
        assert poll.poll(0) == []
    if how == "ioctl":
        device.disconnect()
    assert server.disc.wait(5)
    assert server.ended.wait(5)
    await_size(device.index, 0)
    assert not mountpoint.is_mounted_device(mount.device)


def test_a_read_goes_on_after_the_server_was_replaced(attach: Attach) -> None:
    server = Server(DATA)
    device = attach(server, dead_timeout=60)
    server.gate.clear()
    server.taken.clear()
    reader = Reader(device.path)
    reader.start()
    assert server.taken.wait(10)
    server.kill()
    successor = Server(DATA)
    netlink.reconfigure(device.index, identifier="test", sockets=successor.kernel_ends)
    successor.release()
    reader.join(20)
    assert reader.result == DATA[:4096]
    assert reader.seconds < 10  # the block layer's own 30 s, were io_timeout not set
    print(f"went on after {reader.seconds:.2f} s")
    device.disconnect()
    assert successor.disc.wait(5)


def test_a_slow_server_is_left_in_peace(attach: Attach) -> None:
    server = Server(DATA)
    device = attach(server, dead_timeout=60)
    server.gate.clear()
    threading.Timer(3.5, server.gate.set).start()
    assert content(device.path) == DATA
    assert sum(server.reads) > 0 and not server.ended.is_set()


def test_reconfigure_wants_the_same_identifier(attach: Attach) -> None:
    device = attach(Server(DATA))
    with pytest.raises(OSError, match="Invalid argument"):
        netlink.reconfigure(device.index, identifier="other", client_flags=0)


def test_a_spare_socket_is_left_out_silently(attach: Attach) -> None:
    server, spare = Server(DATA), Server(DATA)
    device = attach(server)
    netlink.reconfigure(device.index, identifier="test", sockets=spare.kernel_ends)
    spare.release()
    assert spare.ended.wait(5)
    assert content(device.path) == DATA
    assert spare.reads == [0]


@pytest.mark.qemu  # by ioctl 6.1 lets such a read end as if the device were empty
@both_ways
def test_disconnect_by_name_ends_waiting_reads(attach: Attach, how: str) -> None:
    server = Server(DATA)
    device = attach(server, how=how)
    server.gate.clear()
    server.taken.clear()
    reader = Reader(device.path)
    reader.start()
    assert server.taken.wait(10)
    nbd.disconnect(device.path)
    reader.join(10)
    assert isinstance(reader.result, OSError)
    server.gate.set()
    assert server.ended.wait(5)
    await_size(device.index, 0)


def test_disconnect_of_what_is_not_attached() -> None:
    nbd.disconnect("/dev/nbd15")
    with pytest.raises(UsageError, match="there is no device /dev/nbd4000"):
        nbd.disconnect(4000)


def test_disconnect_leaves_a_successor_alone(attach: Attach) -> None:
    device = attach(Server(DATA), device="/dev/nbd4", identifier="mine")
    netlink.disconnect(4)
    server = Server(DATA)
    attach(server, device="/dev/nbd4", identifier="theirs")
    device.disconnect()
    assert content("/dev/nbd4") == DATA
    assert not server.disc.is_set()


def test_ioctl_outlives_signals(attach: Attach) -> None:
    device = attach(Server(DATA), how="ioctl")
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    try:
        for _ in range(20):
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.005)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen
    assert content(device.path) == DATA


def test_ioctl_ends_with_its_server(attach: Attach) -> None:
    server = Server(DATA)
    device = attach(server, how="ioctl")
    server.kill()
    await_size(device.index, 0)
    with contextlib.suppress(OSError):
        assert content(device.path) == b""
    device.disconnect()
