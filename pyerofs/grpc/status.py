"""The statuses of gRPC, and the errors that stand for them."""

from __future__ import annotations

from enum import IntEnum

from ..errors import PyerofsError


class Code(IntEnum):
    """Of grpc.github.io, "Status codes and their use in gRPC"."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class RpcError(PyerofsError):
    """A call that has failed: raised by a handler for its client, and by the client for its caller."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
