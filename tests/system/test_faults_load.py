"""Under load: fio, 16 deep, with a checksum in each block, against `serve` while everything behind it has a bad day.

The registry is docker-registry with tokens that end after 2 s, behind an nginx that spoils a third of the answers, and
it is restarted all the time. No wrong byte, and no error within the time that a read may take.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dockerregistry import DockerRegistry
from tests.support.images import Layer, push_image
from tests.support.needs import need
from tests.support.nginxserver import Nginx
from tests.support.scene import Scene
from tests.support.tokenserver import LEEWAY, TokenServer

MIB = 1 << 20
SIZE = int(os.environ.get("PYEROFS_LOAD_MIB", "96")) * MIB
TIMEOUT = 60  # seconds, oci.timeout
RESTARTS = 3

FRONT = """
    split_clients "$request_id" $fault {{
        8% 503;
        7% 429;
        6% 500;
        6% 504;
        6% 444;
        * 0;
    }}
    log_format fault '$fault';
    server {{
        listen 127.0.0.1:{{port}};
        access_log {log} fault;
        if ($fault = 503) {{ return 503; }}
        if ($fault = 429) {{ return 429; }}
        if ($fault = 500) {{ return 500; }}
        if ($fault = 504) {{ return 504; }}
        if ($fault = 444) {{ return 444; }}  # nginx's: the connection is closed without an answer
        location / {{
            proxy_pass http://{registry};
            proxy_set_header Host $http_host;
            proxy_buffering off;  # a registry that dies breaks the answer off
        }}
    }}"""


@pytest.fixture
def pattern(tmp_path: Path) -> bytes:
    """What fio has written: each 4 KiB block holds a checksum and its own place; before it a superblock of EROFS."""
    path = tmp_path / "pattern"
    command = [need("fio", "fio"), "--name=write", f"--filename={path}", f"--size={SIZE}", "--rw=write", "--bs=4k"]
    command += ["--ioengine=psync", "--verify=crc32c", "--do_verify=0", "--end_fsync=0", "--verify_state_save=0"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    head = bytearray(MIB)
    head[1024 : 1024 + 4] = (0xE0F5E1E2).to_bytes(4, "little")
    head[1024 + 12] = 12
    head[1024 + 36 : 1024 + 40] = (16).to_bytes(4, "little")  # blocks
    data = path.read_bytes()
    path.unlink()
    return bytes(head) + data[MIB:]


@contextlib.contextmanager
def restarting(registry: DockerRegistry, count: list[int]) -> Iterator[None]:
    """Stops and starts the registry, without a pause between, until the end of the with statement."""
    end = threading.Event()

    def work() -> None:
        while not end.wait(0.4):  # for so long it is there
            registry.restart()
            count[0] += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def verify(url: str, directory: Path) -> float:
    """fio's random reads of everything, each checked; the longest of them, in seconds."""
    command = [need("fio", "fio"), "--name=verify", "--ioengine=nbd", f"--uri={url}", "--rw=randread", "--bs=4k"]
    command += ["--offset=1M", f"--size={SIZE - MIB}", "--iodepth=16", "--verify=crc32c", "--verify_state_save=0"]
    command += ["--output-format=json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=directory, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    assert job["error"] == 0 and job["read"]["io_bytes"] == SIZE - MIB
    return float(job["read"]["clat_ns"]["max"]) / 1e9


def one_round(
    scene: Scene, reference: str, options: str, registry: DockerRegistry, restarts: list[int]
) -> tuple[float, list[str]]:
    """A cold `serve` that all is read from: the longest read, in seconds, and what it said.

    Restarts begin when it is ready: an opening has only a few seconds' patience, in which a slow machine's registry may
    never be there.
    """
    socket = scene.directory / "socket"
    process = scene.start("serve", "--unix", str(socket), "-o", options, reference)
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stderr or ()))
    reader.start()
    try:
        assert process.stdout
        if not process.stdout.readline().startswith("ready: "):
            reader.join(TIMEOUT)
            pytest.fail(f"it does not come up: {lines}")
        with restarting(registry, restarts):
            longest = verify(f"nbd+unix:///?socket={socket}", scene.directory)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    except BaseException:
        process.kill()
        reader.join()
        print(*(line for line in lines if "retrying in" not in line), sep="")
        raise
    finally:
        process.kill()
        process.wait()
        reader.join()
    return longest, lines


def test_fio_while_everything_fails(scene: Scene, tmp_path: Path, pattern: bytes) -> None:
    need("docker-registry", "docker-registry")
    with contextlib.ExitStack() as stack:
        tokens = stack.enter_context(TokenServer(tmp_path, lifetime=2))
        tokens.offset = -LEEWAY  # for so long docker-registry still takes a token that is over
        registry = stack.enter_context(DockerRegistry(tmp_path / "registry", token=tokens))
        push_image(registry, "app", "1", [Layer(pattern)])
        log = tmp_path / "faults"
        front = stack.enter_context(Nginx(tmp_path / "nginx", FRONT.format(log=log, registry=registry.host)))
        restarts, longest, rounds = [0], 0.0, 0
        while restarts[0] < RESTARTS or len(tokens.asked) < 4:
            rounds += 1
            assert rounds <= 10
            options = f"oci=0,oci.timeout={TIMEOUT},oci.cache={tmp_path / f'cache{rounds}'}"
            spent, lines = one_round(scene, f"{front.host}/app:1", options, registry, restarts)
            longest = max(longest, spent)
            # Each try again is told, and nothing was given up.
            gave_up = [line for line in lines if "; retrying in " not in line]
            assert lines and not gave_up, gave_up[:5]
        faults = log.read_text().split()
        spoiled = sum(fault != "0" for fault in faults) / len(faults)
        print(
            f"{rounds} rounds, {restarts[0]} restarts, {len(tokens.asked)} tokens, {len(faults)} answers, "
            f"{spoiled:.0%} of them spoiled; the longest read took {longest:.2f} s"
        )
        assert 0.25 < spoiled < 0.42
        assert longest < TIMEOUT
