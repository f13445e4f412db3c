"""The fixed newstyle handshake: every option, good and bad, hang-ups at every byte, clients that say nothing."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EAGAIN, ECONNRESET, ENOENT, EPROTO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyerofs.core import EXPORT_FLAGS, REQUEST_MAX, Connection
from tests.support import nbdclient as nbd
from tests.support.coreharness import KIB, MIB, Rig, Task, tcp_pair, until

SIZE = 100_001
NAME = "library/é:1"
TEXT = "a layer"
BOTH = nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES
ROUNDED = 100_352  # to whole sectors
EXPORT = struct.pack(">HQH", nbd.INFO_EXPORT, ROUNDED, EXPORT_FLAGS)
BLOCKS = struct.pack(">HIII", nbd.INFO_BLOCK_SIZE, 1, 4096, REQUEST_MAX)
OPTION_MAX = 64 * KIB
quick = settings(deadline=None, print_blob=True, max_examples=150)


@pytest.fixture(scope="module")
def full() -> Iterator[Rig]:
    with Rig(SIZE, full=True) as rig:
        yield rig


class Server:
    """One client's connection: the handshake in a thread, and the transmission phase if it gets there."""

    def __init__(self, rig: Rig, timeout: float, pair: tuple[socket.socket, socket.socket], name: str):
        self.sock, other = pair
        self.client = nbd.Client(other)
        self.connection = Connection(rig.store, self.sock.fileno())
        self.task = Task(self._run, name, timeout)

    def _run(self, name: str, timeout: float) -> bool:
        try:
            if self.connection.handshake(name, TEXT, timeout):
                self.connection.serve()
                return True
            return False
        finally:
            ignoring(self.sock.shutdown, socket.SHUT_RDWR)

    def result(self) -> bool:
        return bool(self.task.result())

    def error(self) -> int:
        with pytest.raises(OSError) as caught:
            self.task.result()
        assert caught.value.errno
        return caught.value.errno

    def close(self) -> None:
        self.connection.stop()
        self.task.join(nbd.TIMEOUT)
        assert not self.task.is_alive()
        self.connection.close()
        self.client.close()
        self.sock.close()


@contextmanager
def serving(
    rig: Rig, *, timeout: float = 20, tcp: bool = False, name: str = NAME, sent: bytes = b""
) -> Iterator[Server]:
    """`sent`: what lies in the socket already when the server begins."""
    pair = tcp_pair() if tcp else socket.socketpair()
    pair[1].sendall(sent)
    server = Server(rig, timeout, pair, name)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def server(full: Rig) -> Iterator[Server]:
    with serving(full) as server:
        yield server


@pytest.fixture
def client(server: Server) -> nbd.Client:
    server.client.greet()
    return server.client


def types(replies: list[nbd.OptionReply]) -> list[int]:
    return [reply.type for reply in replies]


# Greeting


def test_greeting(server: Server) -> None:
    assert server.client.greet() == BOTH


@pytest.mark.parametrize("flags", [4, BOTH | 4, 1 << 31, 0xFFFFFFFF])
def test_unknown_client_flags(server: Server, flags: int) -> None:
    server.client.greet(flags)
    assert server.error() == EPROTO


@pytest.mark.parametrize("flags", [0, 1, 2, 3])
def test_known_client_flags(server: Server, flags: int) -> None:
    server.client.greet(flags)
    assert types(server.client.negotiate(nbd.OPT_LIST)) == [nbd.REP_SERVER, nbd.REP_ACK]


@pytest.mark.parametrize("magic", [0, nbd.NBDMAGIC, nbd.OPTION_REPLY_MAGIC, nbd.IHAVEOPT ^ 1])
def test_bad_option_magic(server: Server, client: nbd.Client, magic: int) -> None:
    client.send(nbd.OPTION.pack(magic, nbd.OPT_LIST, 0))
    assert server.error() == EPROTO


# GO and INFO


@pytest.mark.parametrize("name", [NAME, ""])
@pytest.mark.parametrize("tcp", [False, True])
def test_go(full: Rig, name: str, tcp: bool) -> None:
    with serving(full, tcp=tcp) as server:
        client = server.client
        client.greet()
        replies = client.negotiate(nbd.OPT_GO, nbd.go_data(name))
        assert types(replies) == [nbd.REP_INFO, nbd.REP_INFO, nbd.REP_ACK]
        assert [reply.data for reply in replies] == [EXPORT, BLOCKS, b""]
        assert client.call(nbd.CMD_READ, 5, 6).data == full.slice(5, 6)
        client.ask(nbd.CMD_DISC)
        assert server.result() is True


def test_info_is_not_the_end(full: Rig, client: nbd.Client) -> None:
    infos = (nbd.INFO_NAME, nbd.INFO_DESCRIPTION, nbd.INFO_BLOCK_SIZE, nbd.INFO_EXPORT, 77)
    for _ in range(3):
        replies = client.negotiate(nbd.OPT_INFO, nbd.go_data(NAME, *infos))
        assert [reply.data for reply in replies] == [
            EXPORT,
            BLOCKS,
            struct.pack(">H", nbd.INFO_NAME) + NAME.encode(),
            struct.pack(">H", nbd.INFO_DESCRIPTION) + TEXT.encode(),
            b"",
        ]
        assert types(replies) == [nbd.REP_INFO] * 4 + [nbd.REP_ACK]
    assert types(client.negotiate(nbd.OPT_GO, nbd.go_data("")))[-1] == nbd.REP_ACK
    client.barrier()


@pytest.mark.parametrize("option", [nbd.OPT_GO, nbd.OPT_INFO])
@pytest.mark.parametrize("name", ["x", NAME + "x", NAME[:-1], NAME + "\0", NAME.upper(), "x" * 5000])
def test_unknown_export(client: nbd.Client, option: int, name: str) -> None:
    assert types(client.negotiate(option, nbd.go_data(name))) == [nbd.REP_ERR_UNKNOWN]
    assert types(client.negotiate(nbd.OPT_GO, nbd.go_data(NAME)))[-1] == nbd.REP_ACK


@pytest.mark.parametrize("option", [nbd.OPT_GO, nbd.OPT_INFO])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(5),
        bytes(7),
        nbd.go_data(NAME)[:-1],
        nbd.go_data(NAME) + b"\0",
        nbd.go_data(NAME, 1)[:-1],
        nbd.go_data(NAME, 1) + b"\0\0",
        struct.pack(">IH", 1, 0),
        struct.pack(">IH", 0xFFFFFFFF, 0),
        struct.pack(">IH", 0xFFFFFFFA, 0),
        struct.pack(">IH", 0, 0xFFFF),
        struct.pack(">IH", 0, 1),
        struct.pack(">I", 60_000) + bytes(100),
    ],
)
def test_malformed_go(client: nbd.Client, option: int, data: bytes) -> None:
    assert types(client.negotiate(option, data)) == [nbd.REP_ERR_INVALID]
    assert types(client.negotiate(nbd.OPT_INFO, nbd.go_data("")))[-1] == nbd.REP_ACK


def test_go_that_asks_for_very_much(client: nbd.Client) -> None:
    count = (OPTION_MAX - 6) // 2
    replies = client.negotiate(nbd.OPT_GO, nbd.go_data("", *[nbd.INFO_NAME] * count))
    assert len(replies) == count + 3
    client.barrier()


# LIST, ABORT and what is not supported


def test_list(client: nbd.Client) -> None:
    raw = NAME.encode()
    replies = client.negotiate(nbd.OPT_LIST)
    assert types(replies) == [nbd.REP_SERVER, nbd.REP_ACK]
    assert replies[0].data == struct.pack(">I", len(raw)) + raw
    assert types(client.negotiate(nbd.OPT_LIST, b"x")) == [nbd.REP_ERR_INVALID]


def test_a_name_beyond_the_limit_is_not_listed(full: Rig) -> None:
    with serving(full, name="n" * 4097) as server:
        server.client.greet()
        assert types(server.client.negotiate(nbd.OPT_LIST)) == [nbd.REP_ERR_INVALID]
        replies = server.client.negotiate(nbd.OPT_INFO, nbd.go_data("", nbd.INFO_NAME))
        assert len(replies[2].data) == 2 + 4096


@pytest.mark.parametrize("data", [b"", b"why not"])
def test_abort(server: Server, client: nbd.Client, data: bytes) -> None:
    assert types(client.negotiate(nbd.OPT_ABORT, data)) == [nbd.REP_ACK]
    assert server.result() is False
    assert client.at_end()


def test_abort_of_a_client_that_is_gone(server: Server, client: nbd.Client) -> None:
    client.option(nbd.OPT_ABORT)
    client.close()
    assert server.result() is False


@pytest.mark.parametrize("option", [0, 4, nbd.OPT_STARTTLS, nbd.OPT_STRUCTURED_REPLY, 9, 10, 11, 0xFFFFFFFF])
@pytest.mark.parametrize("length", [0, 100, OPTION_MAX])
def test_unsupported(client: nbd.Client, option: int, length: int) -> None:
    assert types(client.negotiate(option, bytes(length))) == [nbd.REP_ERR_UNSUP]
    assert types(client.negotiate(nbd.OPT_LIST)) == [nbd.REP_SERVER, nbd.REP_ACK]


@pytest.mark.parametrize("option", [nbd.OPT_GO, nbd.OPT_LIST, 99])
@pytest.mark.parametrize("length", [OPTION_MAX + 1, MIB + 5])
def test_too_big(client: nbd.Client, option: int, length: int) -> None:
    assert types(client.negotiate(option, bytes(length))) == [nbd.REP_ERR_TOO_BIG]
    assert types(client.negotiate(nbd.OPT_LIST)) == [nbd.REP_SERVER, nbd.REP_ACK]


@pytest.mark.parametrize("length", [REQUEST_MAX + 1, 0xFFFFFFFF])
def test_far_too_big(server: Server, client: nbd.Client, length: int) -> None:
    client.send(nbd.OPTION.pack(nbd.IHAVEOPT, nbd.OPT_GO, length))
    assert server.error() == EPROTO


# EXPORT_NAME


@pytest.mark.parametrize("name", [NAME, ""])
@pytest.mark.parametrize("flags, zeroes", [(0, 124), (1, 124), (2, 0), (3, 0)])
def test_export_name(full: Rig, server: Server, name: str, flags: int, zeroes: int) -> None:
    client = server.client
    client.greet(flags)
    client.option(nbd.OPT_EXPORT_NAME, name.encode())
    assert client.receive(10) == struct.pack(">QH", ROUNDED, EXPORT_FLAGS)
    assert client.receive(zeroes) == bytes(zeroes)
    assert client.call(nbd.CMD_READ, SIZE - 1, 1).data == full.slice(SIZE - 1, 1)


@pytest.mark.parametrize("name", ["other", NAME + " ", "x" * (OPTION_MAX + 1)])
def test_export_name_unknown(server: Server, client: nbd.Client, name: str) -> None:
    client.option(nbd.OPT_EXPORT_NAME, name.encode())
    assert server.error() == ENOENT


# Hang-ups and silence


CONVERSATION = (
    struct.pack(">I", BOTH)
    + nbd.OPTION.pack(nbd.IHAVEOPT, nbd.OPT_LIST, 0)
    + nbd.OPTION.pack(nbd.IHAVEOPT, nbd.OPT_GO, 8)
    + nbd.go_data("", nbd.INFO_NAME)
)
IN_ORDER = (0, 4, 20)  # between two messages


@pytest.mark.parametrize("count", range(len(CONVERSATION)))
def test_hang_up_at_every_byte(server: Server, count: int) -> None:
    server.client.send(CONVERSATION[:count])
    server.client.sock.shutdown(socket.SHUT_WR)
    if count in IN_ORDER:
        assert server.result() is False
    else:
        assert server.error() == ECONNRESET


@pytest.mark.parametrize("count", range(len(CONVERSATION)))
def test_silence_at_every_byte(full: Rig, count: int) -> None:
    with serving(full, timeout=0.01, sent=CONVERSATION[:count]) as server:
        assert server.error() == EAGAIN


def test_silence_within_what_is_thrown_away(full: Rig) -> None:
    sent = struct.pack(">I", BOTH) + nbd.OPTION.pack(nbd.IHAVEOPT, 99, MIB) + bytes(1000)
    with serving(full, timeout=0.01, sent=sent) as server:
        assert server.error() == EAGAIN


def test_a_client_that_does_not_read_is_given_up(full: Rig) -> None:
    """It asks for far more than the socket holds, and takes none of it."""
    many = nbd.go_data("", *[nbd.INFO_NAME] * 30_000)
    sent = struct.pack(">I", BOTH) + nbd.OPTION.pack(nbd.IHAVEOPT, nbd.OPT_INFO, len(many)) + many
    with serving(full, timeout=0.01, sent=sent) as server:
        assert server.error() == EAGAIN


def test_the_timeout_ends_with_the_handshake(full: Rig) -> None:
    with serving(full, timeout=0.5, sent=CONVERSATION) as server:
        server.client.greet_only()
        server.client.option_replies()
        server.client.option_replies()
        server.task.join(0.6)  # lets time pass
        assert server.client.call(nbd.CMD_READ, 0, 1).error == 0


def test_client_that_sends_a_byte_now_and_then_is_given_up(full: Rig) -> None:
    """The time is the whole handshake's, not each message's."""
    sent = struct.pack(">I", BOTH) + nbd.OPTION.pack(nbd.IHAVEOPT, nbd.OPT_INFO, OPTION_MAX)
    with serving(full, timeout=0.3, sent=sent) as server:

        def drip() -> bool:
            ignoring(server.client.sock.send, b"x")
            return not server.task.is_alive()

        until(drip, "the end of the handshake")
        assert server.error() == EAGAIN


@pytest.mark.parametrize("offset, length", [(SIZE - 1, 2), (SIZE, 1), (SIZE, 351), (0, ROUNDED), (SIZE - 5000, 5351)])
def test_size_is_rounded_up_to_sectors_with_zeros(full: Rig, client: nbd.Client, offset: int, length: int) -> None:
    client.negotiate(nbd.OPT_GO, nbd.go_data(""))
    reply = client.call(nbd.CMD_READ, offset, length)
    assert (reply.error, reply.data) == (0, full.slice(offset, length).ljust(length, b"\0"))
    assert client.call(nbd.CMD_READ, offset, ROUNDED - offset + 1).error == nbd.EINVAL


def test_zeros_behind_a_read_that_has_to_wait() -> None:
    with Rig(SIZE) as rig, serving(rig) as server:
        sending = rig.task(server.connection.send)
        server.client.greet()
        server.client.negotiate(nbd.OPT_GO, nbd.go_data(""))
        rig.source()
        reply = server.client.call(nbd.CMD_READ, SIZE - 10, 100)
        assert (reply.error, reply.data) == (0, rig.slice(SIZE - 10, 10) + bytes(90))
        server.client.sock.shutdown(socket.SHUT_RDWR)
        sending.result()


def test_byte_by_byte(server: Server) -> None:
    for byte in CONVERSATION:
        server.client.send(bytes([byte]))
    server.client.greet_only()
    assert types(server.client.option_replies()) == [nbd.REP_SERVER, nbd.REP_ACK]
    assert types(server.client.option_replies())[-1] == nbd.REP_ACK
    server.client.barrier()


def test_requests_right_behind_the_handshake(full: Rig, server: Server) -> None:
    client = server.client
    client.send(CONVERSATION + client.pack(nbd.CMD_READ, 9, 9))
    client.greet_only()
    client.option_replies()
    client.option_replies()
    assert client.reply().data == full.slice(9, 9)


options = st.builds(
    lambda option, data, length: nbd.OPTION.pack(nbd.IHAVEOPT, option, len(data) if length is None else length) + data,
    st.sampled_from([*range(11), 0xFFFFFFFF]),
    st.one_of(st.binary(max_size=30), st.just(nbd.go_data("", 1, 2, 3)), st.just(NAME.encode())),
    st.sampled_from([None, None, None, 0, 6, OPTION_MAX, OPTION_MAX + 1, 0xFFFFFFFF]),
)


@quick
@given(
    st.sampled_from([b"", *(struct.pack(">I", n) for n in range(5))]),
    st.lists(st.one_of(options, options, options, st.binary(max_size=30)), max_size=12),
)
def test_any_bytes_come_to_an_end(full: Rig, flags: bytes, parts: list[bytes]) -> None:
    with serving(full) as server:
        ignoring(server.client.send, flags + b"".join(parts))
        ignoring(server.client.sock.shutdown, socket.SHUT_WR)
        ignoring(drain, server.client.sock)
        server.task.join(nbd.TIMEOUT)
        assert not server.task.is_alive()


def drain(sock: socket.socket) -> None:
    while sock.recv(MIB):
        pass


def ignoring(call: Callable[..., object], *args: object) -> None:
    """The server may have ended the connection already."""
    try:
        call(*args)
    except (ConnectionError, OSError) as error:
        assert not isinstance(error, TimeoutError)
