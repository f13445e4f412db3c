"""OpenMetrics text: read by Prometheus's own parser, written to a file, served over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import parser as text_parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from pyerofs.cache.directory import evict
from pyerofs.core import LATENCY_BOUNDS, Latency
from pyerofs.daemon import record
from pyerofs.daemon.record import LayerRecord, Record
from pyerofs.daemon.stats import _latency, identity, snapshot
from pyerofs.errors import UnavailableError
from pyerofs.mounting import metrics as openmetrics
from pyerofs.mounting.stat import query_all
from pyerofs.quantity import Limit
from tests.support.blobs import Rig
from tests.support.fakeregistry import FakeRegistry, status
from tests.support.needs import need
from tests.support.scene import Scene, until
from tests.support.statuses import daemon, record_of

LABELS = {"target": "/mnt", "source": "app", "digest": "sha256:00", "device": "/dev/nbd0"}
FILE = "pyerofs.prom"


def made(target: str, device: str) -> Record:
    return Record("1", 1, 1, target, "app", "nbd", device, (LayerRecord("1", device, 300_000, "sha256:00"),))


@pytest.fixture
def statuses(fake: FakeRegistry, tmp_path: Path) -> Iterator[list[dict[str, Any]]]:
    """One mount that has seen something, and one whose daemon does not answer."""
    rig = Rig(fake, tmp_path)
    fake.script(status(503))
    with rig.open(rig.publish(300_000)[0]) as blob:
        blob.pread(1000, 0)
        blob.pread(1000, 0)
        export = blob._export
        until(lambda: not export.store.stats().flights, "the run's end")
        answered = snapshot([export], made("/mnt", "/dev/nbd0"), 0)
    silent = identity(made("/silent", "/dev/nbd1"))
    yield [answered, {**silent, "error": "it does not answer"}]


def parse(text: str) -> dict[str, Any]:
    return {family.name: family for family in openmetrics_parser.text_string_to_metric_families(text)}


def value(families: dict[str, Any], family: str, sample: str = "") -> float:
    """Of the only sample with that name."""
    (found,) = [each for each in families[family].samples if each.name == (sample or family)]
    assert found.labels == LABELS
    return float(found.value)


def test_prometheus_reads_it(statuses: list[dict[str, Any]]) -> None:
    families = parse(openmetrics.render(statuses))
    assert {family.type for family in families.values()} == {"gauge", "counter", "histogram"}
    assert all(family.documentation and name.startswith("pyerofs_") for name, family in families.items())
    for name, family in families.items():
        assert family.unit == (re.findall("_(seconds|bytes)$", name) or [""])[0]
    assert {sample.labels["target"]: sample.value for sample in families["pyerofs_up"].samples} == {
        "/mnt": 1, "/silent": 0,
    }  # fmt: skip
    assert value(families, "pyerofs_blob_size_bytes") == 300_000
    assert value(families, "pyerofs_present_bytes") == 131_072
    for counter, count in (
        ("read_hits", 1), ("read_misses", 1), ("read_failures", 0), ("served_bytes", 2000), ("fetch_requests", 2),
        ("fetch_retries", 1), ("fetch_failures", 1), ("fetch_received_bytes", 131_072), ("restarts", 0),
        ("fetch_wire_bytes", statuses[0]["fetches"]["wire_bytes"]),
    ):  # fmt: skip
        assert value(families, f"pyerofs_{counter}", f"pyerofs_{counter}_total") == count
    assert 0 <= value(families, "pyerofs_fetch_failure_age_seconds") < 60
    assert value(families, "pyerofs_fetch_seconds", "pyerofs_fetch_seconds_count") == 1
    assert value(families, "pyerofs_fetch_seconds", "pyerofs_fetch_seconds_sum") > 0
    assert value(families, "pyerofs_read_seconds", "pyerofs_read_seconds_count") == 0


def test_a_daemon_of_another_version_says_less(statuses: list[dict[str, Any]]) -> None:
    del statuses[0]["fetches"]["wire_bytes"]
    assert parse(openmetrics.render(statuses))["pyerofs_fetch_wire_bytes"].samples == []


def test_without_a_failure_there_is_no_age(statuses: list[dict[str, Any]]) -> None:
    statuses[0]["last_error"] = None
    assert parse(openmetrics.render(statuses))["pyerofs_fetch_failure_age_seconds"].samples == []


def test_without_mounts_it_is_text_too() -> None:
    assert all(not family.samples for family in parse(openmetrics.render([])).values())


def test_readers_of_the_older_format_lose_no_value(statuses: list[dict[str, Any]]) -> None:
    """node_exporter's collector of text files is one."""
    text = openmetrics.render(statuses)
    new = {(s.name, *s.labels.items()): s.value for f in parse(text).values() for s in f.samples}
    old = {
        (s.name, *s.labels.items()): s.value
        for f in text_parser.text_string_to_metric_families(text)
        for s in f.samples
    }
    assert old == new
    kinds = re.findall(r"^# TYPE \S+ (\S+)$", text, re.MULTILINE)
    assert set(kinds) == {"gauge", "counter", "histogram"}


CACHE = {
    "directory": "/var/cache/pyerofs", "size": 5_000, "entries": 2, "limit": 9_000, "evictions": 3,
    "evicted_bytes": 700, "conversions": 1,
}  # fmt: skip


def test_the_cache_is_told_too(statuses: list[dict[str, Any]]) -> None:
    families = parse(openmetrics.render(statuses, [CACHE]))
    told = {
        sample.name: (sample.labels, sample.value)
        for name, family in families.items()
        if name.startswith(("pyerofs_cache", "pyerofs_conversions"))
        for sample in family.samples
    }
    labels = {"directory": "/var/cache/pyerofs"}
    assert told == {
        "pyerofs_cache_size_bytes": (labels, 5_000), "pyerofs_cache_entries": (labels, 2),
        "pyerofs_cache_limit_bytes": (labels, 9_000), "pyerofs_cache_evictions_total": (labels, 3),
        "pyerofs_cache_evicted_bytes_total": (labels, 700), "pyerofs_conversions_total": (labels, 1),
    }  # fmt: skip


def test_figures_of_a_cache(tmp_path: Path) -> None:
    """Evictions are counted where they happen, by whichever process."""
    cache = tmp_path / "cache"
    assert openmetrics.cache_figures(str(cache), None) == {}
    for name in ("a", "b"):
        entry = cache / "sha256" / (name * 64)
        entry.mkdir(parents=True, mode=0o700)
        (entry / "lock").touch()
        (entry / "data").write_bytes(bytes(8192))
    cache.chmod(0o700)
    figures = openmetrics.cache_figures(str(cache), Limit(100 << 20))
    assert (figures["entries"], figures["limit"], figures["evictions"]) == (2, 100 << 20, 0)
    assert figures["size"] >= 16_384
    removed = evict(str(cache), 0)
    assert len(removed.freed) == 2
    after = openmetrics.cache_figures(str(cache), None)
    assert (after["entries"], after["evictions"], after["evicted_bytes"]) == (0, 2, figures["size"])


def test_promtool_finds_nothing_wrong_with_the_classic_format(statuses: list[dict[str, Any]]) -> None:
    text = openmetrics.render(statuses, [CACHE], classic=True)
    found = {
        (s.name, *s.labels.items()): s.value
        for f in text_parser.text_string_to_metric_families(text)
        for s in f.samples
    }
    new = openmetrics.render(statuses, [CACHE])
    assert found == {(s.name, *s.labels.items()): s.value for f in parse(new).values() for s in f.samples}
    done = subprocess.run(
        [need("promtool", "prometheus"), "check", "metrics"], input=text, text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


DEPLOY = Path(__file__).parents[2] / "deploy"


def test_alert_rules_and_dashboard_name_metrics_that_there_are(statuses: list[dict[str, Any]]) -> None:
    rules = DEPLOY / "prometheus/pyerofs.rules.yml"
    subprocess.run([need("promtool", "prometheus"), "check", "rules", rules], check=True, capture_output=True)
    told = set(re.findall(r"^(pyerofs_\w+)", openmetrics.render(statuses, [CACHE], classic=True), re.MULTILINE))
    board = json.loads((DEPLOY / "grafana/pyerofs.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert len(expressions) > 10
    for text in (*expressions, *re.findall(r"expr: (.*)", rules.read_text())):
        assert set(re.findall(r"pyerofs_\w+", text)) <= told, text


def test_a_name_with_a_pid_is_no_label(statuses: list[dict[str, Any]]) -> None:
    """A stack's device is called by its worker's id; the second mount of one name is the one that is seen."""
    stack = {**statuses[1], "device": "pyerofs-4711-1"}
    text = openmetrics.render([stack, {**stack, "device": "pyerofs-4712-1"}])
    assert "4711" not in text and text.count("pyerofs_up{") == 1


@given(st.lists(st.floats(0, 200), max_size=30))
@settings(deadline=None, derandomize=True)
def test_buckets_are_cumulative_and_say_the_truth(seconds: list[float]) -> None:
    from pyerofs.export.metrics import Histogram

    histogram = Histogram()
    for each in seconds:
        histogram.add(each)
    latency = _latency(histogram.read())
    family = openmetrics._Family("x_seconds", "histogram", "text", "")
    lines = list(openmetrics._samples(family, {**LABELS, "reads": {"latency": latency}}, latency))
    counts = {found[1]: int(line.split()[-1]) for line in lines if (found := re.search('le="([^"]+)"', line))}
    assert counts == {bound: sum(each < float(bound) for each in seconds) for bound in counts}
    assert set(openmetrics._BOUNDS) < set(LATENCY_BOUNDS)
    assert len(counts) == len(openmetrics._BOUNDS) + 1


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(deadline=None, derandomize=True)
def test_any_text_can_be_a_label(text: str) -> None:
    nothing = _latency(Latency((0,) * len(LATENCY_BOUNDS), 0, 0))
    assert nothing["count"] == 0
    entry = {**LABELS, "target": text, "error": ""}
    (sample,) = parse(openmetrics.render([entry]))["pyerofs_up"].samples
    assert sample.labels["target"] == text


def test_a_path_that_is_no_text() -> None:
    text = openmetrics.render([{**LABELS, "target": "/\udcff", "error": ""}])
    assert b'target="/?"' in openmetrics.encode(text)


# A file


def test_a_file_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_text("old")
    before = path.open()
    openmetrics.write_file(str(path), "new")
    assert (before.read(), path.read_text()) == ("old", "new")
    before.close()
    assert os.listdir(tmp_path) == [FILE]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("name", ["none/file", ""])
def test_a_file_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnavailableError, match="cannot write"):
        openmetrics.write_file(str(tmp_path / name), "text")
    assert os.listdir(tmp_path) == []


# The command


@pytest.fixture
def mounted(fake: FakeRegistry, tmp_path: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Iterator[Record]:
    """A mount as its daemon would show it, seen by commands too."""
    monkeypatch.setattr(record, "DIRECTORY", str(tmp_path / "run"))
    rig = Rig(fake, tmp_path)
    with rig.open(rig.publish(300_000)[0]) as blob:
        made = record_of(blob._export)
        with daemon(blob._export, made):
            yield made


def test_what_all_daemons_say(mounted: Record) -> None:
    text = openmetrics.render(query_all(record.read_all()))
    assert [(s.labels["target"], s.value) for s in parse(text)["pyerofs_up"].samples] == [("/mnt", 1)]


def test_the_command_writes_it_and_replaces_a_file(scene: Scene) -> None:
    done = scene.run("metrics")
    assert (done.status, done.err) == (0, "")
    assert "pyerofs_up" in parse(done.out)
    assert scene.run("metrics", "--output", FILE).status == 0
    written = (scene.directory / FILE).read_text()
    assert "pyerofs_up" in {family.name for family in text_parser.text_string_to_metric_families(written)}
    assert "# EOF" not in written
    assert scene.run("metrics", "--format", "openmetrics", "--output", FILE).status == 0
    assert "pyerofs_up" in parse((scene.directory / FILE).read_text())
    done = scene.run("metrics", "--output", "none/file")
    assert (done.status, done.error) == (2, "cannot write none/file: No such file or directory")


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str):
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def get(
    connection: http.client.HTTPConnection, path: str = "/metrics", accept: str = "application/openmetrics-text"
) -> tuple[int, str, str]:
    connection.request("GET", path, headers={"Accept": f"{accept};version=1.0.0,text/plain;q=0.5"})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, answer.headers["Content-Type"], body


def check(connection: http.client.HTTPConnection) -> None:
    code, kind, body = get(connection)
    assert (code, kind) == (200, "application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert "pyerofs_up" in parse(body)
    assert get(connection, accept="text/plain")[1] == "text/plain; version=0.0.4; charset=utf-8"
    assert get(connection, "/metrics?x=1")[0] == 200
    assert get(connection, "/other")[0] == 404


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")


def ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("ready: "), process.communicate()
    return line.removeprefix("ready: ").strip()


def test_http_on_loopback(scene: Scene) -> None:
    process = scene.start("metrics", "--listen", "127.0.0.1:0")
    url = ready(process)
    assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+/metrics", url)
    port = int(url.rpartition(":")[2].partition("/")[0])
    with socket.create_connection(("127.0.0.1", port)):  # who says nothing holds up nobody
        check(http.client.HTTPConnection("127.0.0.1", port))
    clients = [threading.Thread(target=check, args=(http.client.HTTPConnection("127.0.0.1", port),)) for _ in range(8)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    end(process)


def test_http_on_a_unix_socket(scene: Scene) -> None:
    path = scene.directory / "socket"
    process = scene.start("metrics", "--listen", f"unix:{path}")
    assert ready(process) == str(path)
    assert path.stat().st_mode & 0o777 == 0o600
    check(UnixConnection(str(path)))
    end(process)
    assert not path.exists()


def test_a_socket_that_was_left_behind(scene: Scene) -> None:
    path = scene.directory / "socket"
    process = scene.start("metrics", "--listen", f"unix:{path}")
    ready(process)
    process.kill()
    process.communicate()
    until(path.exists, "the socket")
    process = scene.start("metrics", "--listen", f"unix:{path}")
    ready(process)
    done = scene.run("metrics", "--listen", f"unix:{path}")
    assert (done.status, done.error) == (
        1, f"--listen {path}: another server listens there, or it is not a socket",
    )  # fmt: skip
    end(process)


@pytest.mark.parametrize(
    "where", ["0.0.0.0:80", ":80", "example.com:80", "127.0.0.1.example.com:80", "[::]:80", "80", "", "192.0.2.1:0"]
)
def test_it_is_for_this_machine(scene: Scene, where: str) -> None:
    done = scene.run("metrics", "--listen", where)
    assert (done.status, done.out) == (1, "")
    assert f"--listen {where}: other machines could read it there" in done.error
    assert "must be unix:PATH, or HOST:PORT of a loopback address" in done.error
