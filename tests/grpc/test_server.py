"""The gRPC server and client, with one another, and the server with clients that are no such."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import h2.events
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from pyerofs.errors import UnavailableError, UsageError
from pyerofs.grpc.client import GrpcClient
from pyerofs.grpc.framing import read_timeout
from pyerofs.grpc.server import listen
from pyerofs.grpc.status import Code, RpcError
from tests.support.grpcstage import PATIENCE, GrpcStage, RawClient

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[GrpcStage]:
    with GrpcStage(tmp_path) as stage:
        yield stage


@pytest.fixture
def client(stage: GrpcStage) -> Iterator[GrpcClient]:
    with contextlib.closing(GrpcClient(stage.path)) as client:
        yield client


@pytest.fixture
def raw(stage: GrpcStage) -> Iterator[RawClient]:
    with contextlib.closing(RawClient(stage.path)) as raw:
        yield raw


def until_end(raw: RawClient) -> list[h2.events.Event]:
    """Everything that comes until the server closes the connection."""
    found = []
    while events := raw.events():
        found += events
    return found


def test_messages_larger_than_any_window_go_both_ways(client: GrpcClient, stage: GrpcStage) -> None:
    large = os.urandom(3 << 20)
    assert client.call("/t.T/Echo", large) == large
    assert client.call("/t.T/Echo", b"") == b""
    assert stage.log == []


def test_a_stream_of_responses_is_whole_and_in_order(client: GrpcClient) -> None:
    assert list(client.stream("/t.T/Many", b"3000")) == [b"%d" % number * 1000 for number in range(3000)]


def test_an_error_s_code_and_text_arrive(client: GrpcClient) -> None:
    with pytest.raises(RpcError, match=r"no method /t\.T/Ä%41") as caught:
        client.call("/t.T/Ä%41", b"")
    assert caught.value.code is Code.UNIMPLEMENTED


def test_a_handler_s_fault_is_an_internal_error_without_its_text(client: GrpcClient, stage: GrpcStage) -> None:
    with pytest.raises(RpcError, match=r"^internal error: KeyError$") as caught:
        client.call("/t.T/Broken", b"")
    assert caught.value.code is Code.INTERNAL
    [line] = stage.log
    assert line.startswith("/t.T/Broken: KeyError") and "\n" not in line
    assert client.call("/t.T/Echo", b"on") == b"on"


def test_a_message_that_is_too_large_is_refused_and_the_next_taken(client: GrpcClient) -> None:
    with pytest.raises(RpcError, match=r"at most 4194304") as caught:
        client.call("/t.T/Echo", bytes(5 << 20))
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert client.call("/t.T/Echo", b"on") == b"on"


def test_the_server_answers_at_the_deadline_while_its_handler_still_runs(stage: GrpcStage, raw: RawClient) -> None:
    stream = raw.begin("/t.T/Hang", grpc_timeout="20m")
    assert raw.wait_for(stream)[b"grpc-status"] == b"%d" % Code.DEADLINE_EXCEEDED
    stage.release.set()
    stream = raw.begin("/t.T/Echo")
    assert raw.wait_for(stream)[b"grpc-status"] == b"0"


def test_a_deadline_that_passed_before_the_request_was_whole_is_answered(raw: RawClient) -> None:
    stream = raw.begin("/t.T/Hang", None, grpc_timeout="1n")
    assert raw.wait_for(stream)[b"grpc-status"] == b"%d" % Code.DEADLINE_EXCEEDED


def test_a_client_gives_up_at_its_deadline(stage: GrpcStage, client: GrpcClient) -> None:
    with pytest.raises(RpcError, match=r"in time|time is up") as caught:
        client.call("/t.T/Hang", b"", timeout=0.05)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert client.call("/t.T/Echo", b"on") == b"on"


def test_a_reset_call_is_cancelled_and_the_others_go_on(stage: GrpcStage, raw: RawClient) -> None:
    first, second = raw.begin("/t.T/Hang"), raw.begin("/t.T/Hang")
    for _ in range(2):
        assert stage.entered.acquire(timeout=PATIENCE)
    raw.h2.reset_stream(first)
    raw.flush()
    stream = raw.begin("/t.T/Echo")
    assert raw.wait_for(stream)[b"grpc-status"] == b"0"  # so the reset has been seen
    assert sorted(call.cancelled() for call in stage.calls) == [False, True]
    stage.release.set()
    assert raw.wait_for(second)[b"grpc-status"] == b"0"


def test_calls_run_at_the_same_time(stage: GrpcStage, raw: RawClient) -> None:
    streams = [raw.begin("/t.T/Hang") for _ in range(20)]
    for _ in streams:
        assert stage.entered.acquire(timeout=PATIENCE)
    assert raw.wait_for(raw.begin("/t.T/Echo"))[b"grpc-status"] == b"0"


def test_calls_that_are_reset_at_once_are_not_without_limit(stage: GrpcStage, raw: RawClient) -> None:
    """CVE-2023-44487: a client that cancels is not owed more work than one that waits."""
    for _ in range(32):
        raw.h2.reset_stream(raw.begin("/t.T/Hang"))
        assert stage.entered.acquire(timeout=PATIENCE)
    for _ in range(600):
        raw.h2.reset_stream(raw.begin("/t.T/Hang"))
    raw.flush()
    answer = raw.wait_for(raw.begin("/t.T/Echo"))
    assert answer[b"grpc-status"] == b"%d" % Code.RESOURCE_EXHAUSTED
    stage.release.set()


def test_a_server_that_ends_answers_what_is_under_way_and_takes_nothing_new(stage: GrpcStage, raw: RawClient) -> None:
    stream = raw.begin("/t.T/Hang")
    assert stage.entered.acquire(timeout=PATIENCE)
    ended = threading.Thread(target=stage.server.close, args=(PATIENCE,))
    ended.start()
    frames = b""
    while b"\x07\0\0\0\0\0" not in frames:  # GOAWAY, after which h2's client reads nothing more
        frames += raw.socket.recv(1 << 16)
    assert stream.to_bytes(4, "big") in frames
    late = raw.begin("/t.T/Hang")
    stage.release.set()
    while data := raw.socket.recv(1 << 16):
        frames += data
    ended.join(PATIENCE)
    assert len(stage.calls) == 1
    assert stream.to_bytes(4, "big") + b"\0\0\0\0\1x" in frames
    assert b"\x01\x04" + late.to_bytes(4, "big") not in frames  # HEADERS


def test_a_client_that_reads_nothing_holds_up_only_itself(stage: GrpcStage, raw: RawClient, client: GrpcClient) -> None:
    raw.begin("/t.T/Many", b"\0\0\0\0\x049999")
    assert client.call("/t.T/Echo", b"on") == b"on"


def test_what_is_no_call_of_grpc_is_refused(raw: RawClient) -> None:
    assert raw.wait_for(raw.begin("/t.T/Echo", content_type="text/html"))[b":status"] == b"415"
    internal = b"%d" % Code.INTERNAL
    assert raw.wait_for(raw.begin("/t.T/Echo", b""))[b"grpc-status"] == internal
    assert raw.wait_for(raw.begin("/t.T/Echo", b"\0\0\0\0\1x" * 2))[b"grpc-status"] == internal
    assert raw.wait_for(raw.begin("/t.T/Echo", grpc_timeout="soon"))[b"grpc-status"] == internal
    compressed = raw.wait_for(raw.begin("/t.T/Echo", b"\1\0\0\0\1x"))
    assert compressed[b"grpc-status"] == b"%d" % Code.UNIMPLEMENTED


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n" * 3, PREFACE + b"\xff" * 64, PREFACE + bytes(64)])
def test_a_client_that_breaks_the_protocol_loses_its_connection(
    stage: GrpcStage, client: GrpcClient, sent: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as hostile:
        hostile.settimeout(PATIENCE)
        hostile.connect(stage.path)
        hostile.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            while hostile.recv(1 << 16):
                pass
    assert client.call("/t.T/Echo", b"on") == b"on"
    [line] = stage.log
    assert line.endswith("; its connection is closed") and line.isprintable()


def test_a_client_that_floods_without_reading_loses_its_connection(stage: GrpcStage, raw: RawClient) -> None:
    ping = b"\0\0\x08\x06\0\0\0\0\0" + bytes(8)
    with pytest.raises(OSError):
        for _ in range(100000):
            raw.socket.sendall(ping * 64)
    raw.close()
    with contextlib.closing(GrpcClient(stage.path)) as client:
        assert client.call("/t.T/Echo", b"on") == b"on"
    assert stage.log == [
        "a client broke the protocol of HTTP/2: ProtocolError: it reads nothing of what it asks for; "
        "its connection is closed"
    ]


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(data=some.data())
def test_any_frames_cost_their_sender_the_connection_at_most(stage: GrpcStage, data: some.DataObject) -> None:
    """Frames that are nearly right, in any order; then the server serves others."""
    frames = some.builds(
        lambda kind, flags, stream, body: (
            len(body).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + body
        ),
        some.integers(0, 12),
        some.integers(0, 255),
        some.sampled_from([0, 1, 2, 3, 5, 1 << 31]),
        some.binary(max_size=80),
    )
    sent = b"".join(data.draw(some.lists(frames, max_size=8)))
    with socket.socket(socket.AF_UNIX) as hostile:
        hostile.settimeout(PATIENCE)
        hostile.connect(stage.path)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            hostile.sendall(PREFACE + sent)
            hostile.shutdown(socket.SHUT_WR)
            while hostile.recv(1 << 16):
                pass
    with contextlib.closing(GrpcClient(stage.path)) as client:
        assert client.call("/t.T/Echo", b"on") == b"on"
    assert all(line.isprintable() for line in stage.log)


def test_too_many_clients_are_turned_away(tmp_path: Path) -> None:
    with GrpcStage(tmp_path, clients=1) as stage, contextlib.closing(GrpcClient(stage.path)) as client:
        assert client.call("/t.T/Echo", b"on") == b"on"
        raw = RawClient.__new__(RawClient)
        raw.socket = socket.socket(socket.AF_UNIX)
        raw.socket.connect(stage.path)
        assert raw.socket.recv(1) == b""
        raw.close()
        assert client.call("/t.T/Echo", b"on") == b"on"


def test_a_client_connects_again_after_its_server_was_replaced(tmp_path: Path) -> None:
    with GrpcStage(tmp_path) as stage:
        client = GrpcClient(stage.path)
        client.call("/t.T/Echo", b"")
    with pytest.raises((RpcError, UnavailableError)):
        client.call("/t.T/Echo", b"")
    with GrpcStage(tmp_path), contextlib.closing(client):
        assert client.call("/t.T/Echo", b"on") == b"on"


def test_nothing_at_the_path_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"cannot connect to .*/none: No such file"):
        GrpcClient(str(tmp_path / "none")).call("/t.T/Echo", b"")


def test_a_socket_in_use_is_not_taken_away(stage: GrpcStage) -> None:
    with pytest.raises(UsageError, match=r"another server listens"):
        listen(stage.path)
    assert os.stat(stage.path).st_mode & 0o777 == 0o600


ACTIVATED = """
import os, sys
from pyerofs.grpc.server import GrpcServer, Method, activated, serve
assert activated({**os.environ, "LISTEN_PID": "1"}) == []
sockets = activated({**os.environ, "LISTEN_PID": str(os.getpid())})
server = GrpcServer({"/t.T/Echo": Method(lambda request, _: request)}, print)
serve(server, sockets, lambda: print("ready", flush=True))
"""


def test_a_socket_of_the_service_manager_is_served(tmp_path: Path) -> None:
    """And its clients wait meanwhile: they connect before there is a server."""
    path = str(tmp_path / "activated.sock")
    with listen(path) as listener:
        client = GrpcClient(path)
        found: list[bytes] = []
        thread = threading.Thread(target=lambda: found.append(client.call("/t.T/Echo", b"early", PATIENCE)))
        thread.start()
        # As a service manager does: the socket is descriptor 3.
        server = subprocess.Popen(
            [sys.executable, "-c", ACTIVATED],
            env={**os.environ, "LISTEN_FDS": "1"},
            stdout=subprocess.PIPE,
            pass_fds=[3],
            preexec_fn=lambda: os.dup2(listener.fileno(), 3),
        )
        thread.join(PATIENCE)
        assert found == [b"early"]
        server.terminate()
        out, _ = server.communicate(timeout=PATIENCE)
        assert (server.returncode, out) == (0, b"ready\n")
        client.close()


@pytest.mark.parametrize(("text", "seconds"), [(b"1S", 1), (b"250m", 0.25), (b"2M", 120), (b"1H", 3600), (b"5u", 5e-6)])
def test_a_timeout_is_read(text: bytes, seconds: float) -> None:
    assert read_timeout(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", [b"", b"S", b"1", b"1x", b"123456789S", b"-1S", b"1.5S", "²S".encode()])
def test_what_is_no_timeout_is_an_error(text: bytes) -> None:
    with pytest.raises(ValueError, match="malformed"):
        read_timeout(text)
