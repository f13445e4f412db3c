"""An NBD client for tests: packs requests, reads simple replies, speaks the newstyle handshake option by option.

Names are the NBD specification's. Every wait on the socket has a deadline, so that a broken server fails a test
instead of hanging it.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple, Self

TIMEOUT = 30.0

NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698

FLAG_FIXED_NEWSTYLE = 1
FLAG_NO_ZEROES = 2

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS, OPT_INFO, OPT_GO, OPT_STRUCTURED_REPLY = 1, 2, 3, 5, 6, 7, 8
REP_ACK, REP_SERVER, REP_INFO = 1, 2, 3
REP_ERR_UNSUP, REP_ERR_INVALID, REP_ERR_UNKNOWN, REP_ERR_TOO_BIG = (1 << 31 | n for n in (1, 3, 6, 9))
INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = 0, 1, 2, 3

CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS = range(8)
EPERM, EIO, EINVAL, ESHUTDOWN = 1, 5, 22, 108

REQUEST = struct.Struct(">IHHQQI")
REPLY = struct.Struct(">IIQ")
OPTION = struct.Struct(">QII")
OPTION_REPLY = struct.Struct(">QIII")


def request(
    kind: int, cookie: int, offset: int = 0, length: int = 0, *, flags: int = 0, magic: int = REQUEST_MAGIC
) -> bytes:
    return REQUEST.pack(magic, flags, kind, cookie, offset, length)


class Reply(NamedTuple):
    cookie: int
    error: int
    data: bytes


class OptionReply(NamedTuple):
    option: int
    type: int
    data: bytes


class Client:
    """The client's end of a connection. Cookies are counted up, so each names one request of this client."""

    def __init__(self, sock: socket.socket):
        self.sock = sock
        sock.settimeout(TIMEOUT)
        self.lengths: dict[int, int] = {}  # of the data that a success would bring; by cookie, of unanswered requests
        self._cookie = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def send(self, data: bytes | bytearray | memoryview) -> None:
        self.sock.sendall(data)

    def receive(self, length: int) -> bytes:
        """Exactly so many bytes; ConnectionError when the server ends the connection before."""
        buffer = bytearray(length)
        view = memoryview(buffer)
        while view:
            n = self.sock.recv_into(view)
            if n == 0:
                raise ConnectionResetError(f"{len(view)} of {length} bytes missing")
            view = view[n:]
        return bytes(buffer)

    def at_end(self) -> bool:
        """Has the server ended the connection, with nothing more to be read from it?"""
        try:
            return self.sock.recv(1) == b""
        except ConnectionError:
            return True

    # Transmission

    def pack(self, kind: int, offset: int = 0, length: int = 0, *, flags: int = 0) -> bytes:
        """A request whose reply replies() will know, not sent yet."""
        self._cookie += 1
        self.lengths[self._cookie] = length if kind == CMD_READ else 0
        return request(kind, self._cookie, offset, length, flags=flags)

    def ask(self, kind: int, offset: int = 0, length: int = 0, *, flags: int = 0, payload: bytes = b"") -> int:
        """Sends a request and returns its cookie."""
        self.send(self.pack(kind, offset, length, flags=flags) + payload)
        return self._cookie

    def read(self, offset: int, length: int) -> int:
        return self.ask(CMD_READ, offset, length)

    def reads(self, ranges: Iterable[tuple[int, int]]) -> list[int]:
        """Sends many reads at once; their cookies."""
        before = self._cookie
        self.send(b"".join(self.pack(CMD_READ, offset, length) for offset, length in ranges))
        return list(range(before + 1, self._cookie + 1))

    def reply(self) -> Reply:
        """The next reply. A cookie that is not waited for, or was answered already, is an error."""
        magic, error, cookie = REPLY.unpack(self.receive(REPLY.size))
        assert magic == SIMPLE_REPLY_MAGIC, hex(magic)
        length = self.lengths.pop(cookie)
        return Reply(cookie, error, b"" if error else self.receive(length))

    def replies(self, count: int) -> dict[int, Reply]:
        return {reply.cookie: reply for reply in (self.reply() for _ in range(count))}

    def call(self, kind: int, offset: int = 0, length: int = 0, *, flags: int = 0, payload: bytes = b"") -> Reply:
        """One request and the reply to it, which must be the next one: a barrier, too."""
        cookie = self.ask(kind, offset, length, flags=flags, payload=payload)
        reply = self.reply()
        assert reply.cookie == cookie, f"a reply to {reply.cookie} where one to {cookie} was due"
        return reply

    def barrier(self) -> None:
        """Nothing has been sent to us that we have not read, and all that we sent has been dispatched."""
        assert self.call(CMD_TRIM).error == EPERM

    # Newstyle handshake

    def greet(self, flags: int = FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) -> int:
        """Reads the greeting, answers it; the server's handshake flags."""
        server_flags = self.greet_only()
        self.send(struct.pack(">I", flags))
        return server_flags

    def greet_only(self) -> int:
        """Reads the greeting."""
        magic, option_magic, server_flags = struct.unpack(">QQH", self.receive(18))
        assert (magic, option_magic) == (NBDMAGIC, IHAVEOPT)
        assert isinstance(server_flags, int)
        return server_flags

    def option(self, option: int, data: bytes = b"") -> None:
        self.send(OPTION.pack(IHAVEOPT, option, len(data)) + data)

    def option_reply(self) -> OptionReply:
        magic, option, kind, length = OPTION_REPLY.unpack(self.receive(OPTION_REPLY.size))
        assert magic == OPTION_REPLY_MAGIC, hex(magic)
        return OptionReply(option, kind, self.receive(length))

    def option_replies(self) -> list[OptionReply]:
        """All up to and with the one that ends them: an ACK or an error."""
        replies = [self.option_reply()]
        while replies[-1].type in (REP_SERVER, REP_INFO):
            replies.append(self.option_reply())
        return replies

    def negotiate(self, option: int, data: bytes = b"") -> list[OptionReply]:
        self.option(option, data)
        replies = self.option_replies()
        assert {reply.option for reply in replies} == {option}
        return replies


def go_data(name: str, *infos: int) -> bytes:
    """What NBD_OPT_GO and NBD_OPT_INFO carry."""
    raw = name.encode()
    return struct.pack(">I", len(raw)) + raw + struct.pack(f">H{len(infos)}H", len(infos), *infos)
