"""The bytes of pyerofs.kernel.netlink. What the kernel makes of them is shown by guest/test_nbd_device.py."""

from __future__ import annotations

import errno
import socket
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyerofs.kernel import netlink

LITTLE = sys.byteorder == "little"
needs_little_endian = pytest.mark.skipif(not LITTLE, reason="the bytes below were written down on such a machine")


class FakeSocket:
    """Gives the datagrams in turn, then times out; keeps what is sent."""

    def __init__(self, *datagrams: bytes, flags: int = 0) -> None:
        self.datagrams = list(datagrams)
        self.flags = flags
        self.sent: list[bytes] = []

    def sendto(self, data: bytes, address: tuple[int, int]) -> None:
        assert address == (0, 0)
        self.sent.append(data)

    def recvmsg(self, size: int) -> tuple[bytes, list[object], int, object]:
        if not self.datagrams:
            raise TimeoutError
        return self.datagrams.pop(0)[:size], [], self.flags, None

    def settimeout(self, seconds: float) -> None:
        pass

    def __enter__(self) -> FakeSocket:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def message(kind: int, payload: bytes, sequence: int = 1) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, 0, sequence, 0) + payload + bytes(-len(payload) % 4)


def acknowledgement(code: int = 0, sequence: int = 1) -> bytes:
    return message(2, struct.pack("=i", -code) + bytes(16), sequence)


def answer(attrs: bytes, sequence: int = 1, kind: int = 34) -> bytes:
    return message(kind, b"\x01\x01\0\0" + attrs, sequence)


FAMILY = answer(bytes.fromhex("0800020061626300 0600010022000000".replace(" ", "")), kind=16) + acknowledgement()


def exchange(*datagrams: bytes, flags: int = 0) -> list[bytes]:
    return netlink._exchange(FakeSocket(*datagrams, flags=flags), 34, 1, 1, b"")  # type: ignore[arg-type]  # a fake


def sent_by(monkeypatch: pytest.MonkeyPatch, *datagrams: bytes) -> FakeSocket:
    sock = FakeSocket(FAMILY, *datagrams)
    monkeypatch.setattr(netlink, "_open", lambda: sock)
    return sock


@needs_little_endian
def test_attribute_and_request() -> None:
    assert netlink.attribute(3, b"abcde").hex(" ") == "09 00 03 00 61 62 63 64 65 00 00 00"
    assert netlink.request(34, 2, 7, b"\x08\0\x01\0\x05\0\0\0").hex(" ") == (
        "1c 00 00 00 22 00 05 00 07 00 00 00 00 00 00 00 02 01 00 00 08 00 01 00 05 00 00 00"
    )


def test_an_attribute_has_16_bits_of_length() -> None:
    assert len(netlink.attribute(1, bytes(0xFFFF - 4))) == 0x10000
    with pytest.raises(ValueError, match="too long"):
        netlink.attribute(1, bytes(0xFFFF - 3))


@needs_little_endian
def test_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    sock = sent_by(monkeypatch, answer(bytes.fromhex("0800010003000000"), 2), acknowledgement(sequence=2))
    index = netlink.connect(
        [5, 6],
        size=0x100000200,
        block_size=512,
        server_flags=0x103,
        identifier="abc",
        dead_timeout=60,
        client_flags=2,
    )
    assert index == 3
    assert sock.sent[0].hex(" ") == (
        "1c 00 00 00 10 00 05 00 01 00 00 00 00 00 00 00 03 01 00 00 08 00 02 00 6e 62 64 00"
    )
    assert sock.sent[1][16:].hex(" ") == (
        "01 01 00 00 "
        "0c 00 02 00 00 02 00 00 01 00 00 00 "
        "0c 00 03 00 00 02 00 00 00 00 00 00 "
        "0c 00 04 00 00 00 00 00 00 00 00 00 "
        "0c 00 08 00 3c 00 00 00 00 00 00 00 "
        "0c 00 05 00 03 01 00 00 00 00 00 00 "
        "0c 00 06 00 02 00 00 00 00 00 00 00 "
        "08 00 0a 00 61 62 63 00 "
        "1c 00 07 00 0c 00 01 00 08 00 01 00 05 00 00 00 0c 00 01 00 08 00 01 00 06 00 00 00"
    )


@needs_little_endian
def test_connect_names_an_index_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    sock = sent_by(monkeypatch, answer(bytes.fromhex("0800010009000000"), 2) + acknowledgement(sequence=2))
    assert netlink.connect([5], size=512, block_size=512, server_flags=3, identifier="x", index=9) == 9
    assert sock.sent[1][20:28].hex(" ") == "08 00 01 00 09 00 00 00"


@needs_little_endian
def test_reconfigure_sends_only_what_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    sock = sent_by(monkeypatch, acknowledgement(sequence=2))
    netlink.reconfigure(4, identifier="abc", client_flags=2)
    assert sock.sent[1][16:].hex(" ") == (
        "03 01 00 00 08 00 01 00 04 00 00 00 08 00 0a 00 61 62 63 00 0c 00 06 00 02 00 00 00 00 00 00 00"
    )


def test_connect_without_an_index_in_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    sent_by(monkeypatch, acknowledgement(sequence=2))
    with pytest.raises(OSError, match="no device index"):
        netlink.connect([5], size=512, block_size=512, server_flags=3, identifier="x")


@needs_little_endian
def test_status(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = bytes.fromhex(
        "2c000980 14000180 0800010000000000 0500020000000000 14000180 0800010001000000 0500020001000000".replace(
            " ", ""
        )
    )
    sent_by(monkeypatch, answer(devices, 2), acknowledgement(sequence=2))
    assert netlink.status() == [(0, False), (1, True)]


def test_no_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "_open", lambda: FakeSocket(acknowledgement(errno.ENOENT)))
    with pytest.raises(netlink.NoFamily) as caught:
        netlink.disconnect(0)
    assert caught.value.errno == errno.ENOENT


def test_an_error_is_its_errno() -> None:
    with pytest.raises(OSError, match="busy") as caught:
        exchange(acknowledgement(errno.EBUSY))
    assert caught.value.errno == errno.EBUSY


def test_answers_of_another_request_are_left_out() -> None:
    assert exchange(acknowledgement(errno.EIO, sequence=9) + answer(b"old!", sequence=9), acknowledgement()) == []


@pytest.mark.parametrize("payload", [b"", b"\0", struct.pack("=i", 5), struct.pack("=i", -(2**31))])
def test_an_acknowledgement_without_an_errno(payload: bytes) -> None:
    with pytest.raises(OSError, match="netlink") as caught:
        exchange(message(2, payload))
    assert caught.value.errno == errno.EBADMSG


def test_a_truncated_datagram() -> None:
    with pytest.raises(OSError, match="beyond 64 KiB"):
        exchange(acknowledgement(), flags=socket.MSG_TRUNC)


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), max_size=8))
def test_attributes_round_trip(pairs: list[tuple[int, bytes]]) -> None:
    assert list(netlink.attributes(b"".join(netlink.attribute(kind, value) for kind, value in pairs))) == pairs


@given(st.lists(st.tuples(st.integers(16, 0xFFFF), st.binary(max_size=40)), max_size=8))
def test_messages_round_trip(pairs: list[tuple[int, bytes]]) -> None:
    data = b"".join(message(kind, payload) for kind, payload in pairs)
    assert [(found.type, found.payload) for found in netlink.messages(data)] == pairs


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: message(2, tail) + tail))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for decode in (lambda: list(netlink.messages(data)), lambda: netlink.device_list(data), lambda: exchange(data)):
        try:
            decode()
        except OSError as error:
            assert error.errno or isinstance(error, TimeoutError)


@given(
    st.recursive(
        st.binary(max_size=12),
        lambda inner: st.lists(inner, max_size=4).map(
            lambda values: b"".join(
                netlink.attribute(kind, value) for kind, value in zip((9, 1, 1, 2), values, strict=False)
            )
        ),
    )
)
def test_any_tree_of_attributes_is_read_or_refused(data: bytes) -> None:
    try:
        assert isinstance(netlink.device_list(data), list)
    except OSError as error:
        assert error.errno == errno.EBADMSG
