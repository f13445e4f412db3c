"""The kernel's NBD family of generic netlink: connect, reconfigure, disconnect, status.

Wire formats: <linux/netlink.h>, <linux/genetlink.h>, <linux/nbd-netlink.h>; integers are in the host's byte order.
Each call opens its own socket and closes it, so every function may be called from any thread. The kernel handles a
request inside send(), so an answer is there at once; WAIT only bounds a kernel that misbehaves.

Errors: OSError with the kernel's errno. NoFamily when this kernel has no NBD family (it is seen from every network
namespace); EBADMSG for an answer that cannot be read; EPERM without CAP_SYS_ADMIN in the initial user namespace.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

WAIT = 10.0  # seconds

_FAMILY = b"nbd\0"
_NETLINK_GENERIC = 16
_NLM_F_REQUEST, _NLM_F_ACK = 0x1, 0x4
_NLMSG_ERROR, _NLMSG_MIN_TYPE = 2, 16
_NLA_TYPE_MASK = 0x3FFF
_CTRL_ID, _CTRL_CMD_GETFAMILY, _CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME = 16, 3, 1, 2

_CMD_CONNECT, _CMD_DISCONNECT, _CMD_RECONFIGURE, _CMD_STATUS = 1, 2, 3, 5
_ATTR_INDEX, _ATTR_SIZE_BYTES, _ATTR_BLOCK_SIZE_BYTES, _ATTR_TIMEOUT = 1, 2, 3, 4
_ATTR_SERVER_FLAGS, _ATTR_CLIENT_FLAGS, _ATTR_SOCKETS, _ATTR_DEAD_CONN_TIMEOUT = 5, 6, 7, 8
_ATTR_DEVICE_LIST, _ATTR_BACKEND_IDENTIFIER = 9, 10
_SOCK_ITEM, _SOCK_FD = 1, 1
_DEVICE_ITEM, _DEVICE_INDEX, _DEVICE_CONNECTED = 1, 1, 2

CFLAG_DESTROY_ON_DISCONNECT, CFLAG_DISCONNECT_ON_CLOSE = 1, 2

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_GENERIC = struct.Struct("=BBH")  # command, version, reserved
_ATTRIBUTE = struct.Struct("=HH")  # length, type


class NoFamily(FileNotFoundError):
    """There is no NBD family: the nbd module is not loaded, or its kernel is older than 4.12."""


class NetlinkMessage(NamedTuple):
    type: int
    sequence: int
    payload: bytes


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded; raises ValueError for a value beyond its 16-bit length."""
    length = _ATTRIBUTE.size + len(value)
    if length > 0xFFFF:
        raise ValueError(f"a netlink attribute of {length} bytes is too long")
    return _pad(_ATTRIBUTE.pack(length, kind) + value)


def request(family: int, command: int, sequence: int, attributes: bytes) -> bytes:
    """One generic netlink request (version 1) that asks for an acknowledgement."""
    body = _GENERIC.pack(command, 1, 0) + attributes
    return _HEADER.pack(_HEADER.size + len(body), family, _NLM_F_REQUEST | _NLM_F_ACK, sequence, 0) + body


def messages(data: bytes) -> Iterator[NetlinkMessage]:
    """Return the messages of one datagram. Raises OSError(EBADMSG) at the first that is malformed."""
    while data:
        if len(data) < _HEADER.size:
            raise _unreadable("a cut header")
        length, kind, _, sequence, _ = _HEADER.unpack_from(data)
        if not _HEADER.size <= length <= len(data):
            raise _unreadable(f"a message of {length} bytes in {len(data)}")
        yield NetlinkMessage(kind, sequence, data[_HEADER.size : length])
        data = data[length + -length % 4 :]


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Return the (type, value) pairs of one level of attributes. Raises OSError(EBADMSG) at the first malformed one."""
    while data:
        if len(data) < _ATTRIBUTE.size:
            raise _unreadable("a cut attribute")
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            raise _unreadable(f"an attribute of {length} bytes in {len(data)}")
        yield kind & _NLA_TYPE_MASK, data[_ATTRIBUTE.size : length]
        data = data[length + -length % 4 :]


def device_list(attrs: bytes) -> list[tuple[int, bool]]:
    """Return the (index, connected) pairs in a STATUS answer's attributes.

    Raises OSError(EBADMSG) for malformed ones.
    """
    found = []
    for kind, listed in attributes(attrs):
        for item_kind, item in attributes(listed) if kind == _ATTR_DEVICE_LIST else ():
            if item_kind == _DEVICE_ITEM:
                fields = dict(attributes(item))
                index, connected = fields.get(_DEVICE_INDEX, b""), fields.get(_DEVICE_CONNECTED, b"\0")
                found.append((_integer(index, 4), any(connected)))
    return found


def connect(
    sockets: Sequence[int],
    *,
    size: int,
    block_size: int,
    server_flags: int,
    identifier: str,
    index: int | None = None,
    timeout: int = 0,
    dead_timeout: int = 0,
    client_flags: int = 0,
) -> int:
    """NBD_CMD_CONNECT: attach `sockets` (in the transmission phase) to a device and return the device's index.

    The kernel takes its own reference to each socket: the caller still owns the descriptors. Without `index` the
    kernel picks a free device, or makes one. `size` and `block_size` are bytes, `timeout` (of a request; 0: none) and
    `dead_timeout` (that requests wait for a reconnect) are seconds. A device in use: OSError(EBUSY).
    """
    attrs = (
        (b"" if index is None else _u32(_ATTR_INDEX, index))
        + _u64(_ATTR_SIZE_BYTES, size)
        + _u64(_ATTR_BLOCK_SIZE_BYTES, block_size)
        + _u64(_ATTR_TIMEOUT, timeout)
        + _u64(_ATTR_DEAD_CONN_TIMEOUT, dead_timeout)
        + _u64(_ATTR_SERVER_FLAGS, server_flags)
        + _u64(_ATTR_CLIENT_FLAGS, client_flags)
        + attribute(_ATTR_BACKEND_IDENTIFIER, identifier.encode() + b"\0")
        + _socket_list(sockets)
    )
    for answer in _transact(_CMD_CONNECT, attrs):
        return _integer(dict(attributes(answer)).get(_ATTR_INDEX, b""), 4)
    raise _unreadable("no device index")


def reconfigure(
    index: int,
    *,
    identifier: str,
    sockets: Sequence[int] = (),
    timeout: int | None = None,
    dead_timeout: int | None = None,
    client_flags: int | None = None,
) -> None:
    """NBD_CMD_RECONFIGURE: replace dead sockets and change what is given; `identifier` as it was at connect.

    A socket for which the device has no dead one is left out by the kernel without an error: then nothing ever
    arrives at its other end. `timeout` (seconds) also resets queue/io_timeout (0 makes it 30 s), so set that again
    afterwards. The caller still owns the descriptors. Another identifier or no connected device: OSError(EINVAL).
    """
    attrs = _u32(_ATTR_INDEX, index) + attribute(_ATTR_BACKEND_IDENTIFIER, identifier.encode() + b"\0")
    if timeout is not None:
        attrs += _u64(_ATTR_TIMEOUT, timeout)
    if dead_timeout is not None:
        attrs += _u64(_ATTR_DEAD_CONN_TIMEOUT, dead_timeout)
    if client_flags is not None:
        attrs += _u64(_ATTR_CLIENT_FLAGS, client_flags)
    _transact(_CMD_RECONFIGURE, attrs + (_socket_list(sockets) if sockets else b""))


def disconnect(index: int) -> None:
    """NBD_CMD_DISCONNECT: send NBD_CMD_DISC and end the session; a device that is not connected is no error."""
    _transact(_CMD_DISCONNECT, _u32(_ATTR_INDEX, index))


def status() -> list[tuple[int, bool]]:
    """NBD_CMD_STATUS: (index, connected) of every device of this kernel."""
    return [device for answer in _transact(_CMD_STATUS, b"") for device in device_list(answer)]


def family() -> int:
    """Return the id of the NBD family. Raises NoFamily where there is none."""
    with _open() as sock:
        return _resolve(sock)


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def _u64(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=Q", value))


def _socket_list(sockets: Sequence[int]) -> bytes:
    return attribute(_ATTR_SOCKETS, b"".join(attribute(_SOCK_ITEM, _u32(_SOCK_FD, fd)) for fd in sockets))


def _integer(value: bytes, size: int) -> int:
    if len(value) != size:
        raise _unreadable(f"an integer of {len(value)} bytes")
    return int.from_bytes(value, "little" if struct.pack("=H", 1)[0] else "big")


def _unreadable(what: str) -> OSError:
    return OSError(errno.EBADMSG, f"netlink: {what}")


def _open() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC)
    sock.settimeout(WAIT)
    return sock


def _transact(command: int, attrs: bytes) -> list[bytes]:
    with _open() as sock:
        return _exchange(sock, _resolve(sock), command, 2, attrs)


def _resolve(sock: socket.socket) -> int:
    try:
        name = attribute(_CTRL_ATTR_FAMILY_NAME, _FAMILY)
        for answer in _exchange(sock, _CTRL_ID, _CTRL_CMD_GETFAMILY, 1, name):
            return _integer(dict(attributes(answer)).get(_CTRL_ATTR_FAMILY_ID, b""), 2)
    except FileNotFoundError:
        raise NoFamily(errno.ENOENT, "no NBD family in generic netlink") from None
    raise _unreadable("no family id")


def _exchange(sock: socket.socket, to: int, command: int, sequence: int, attrs: bytes) -> list[bytes]:
    """Send one request and return the attributes of each answer that comes before its acknowledgement."""
    sock.sendto(request(to, command, sequence, attrs), (0, 0))
    answers: list[bytes] = []
    while True:
        data, _, flags, _ = sock.recvmsg(1 << 16)
        if flags & socket.MSG_TRUNC:
            raise _unreadable("an answer beyond 64 KiB")
        for message in messages(data):
            if message.sequence != sequence:
                continue
            if message.type == _NLMSG_ERROR:
                if code := _error_code(message.payload):
                    raise OSError(code, os.strerror(code))
                return answers
            if message.type >= _NLMSG_MIN_TYPE:
                answers.append(message.payload[_GENERIC.size :])


def _error_code(payload: bytes) -> int:
    """Return the errno of an acknowledgement (struct nlmsgerr), 0 for success."""
    code: int = -struct.unpack("=i", payload[:4])[0] if len(payload) >= 4 else -1
    if not 0 <= code < 4096:
        raise _unreadable("an acknowledgement without an errno")
    return code
