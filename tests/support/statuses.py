"""A mount's parts without a mount: an export, its record, and a control socket that answers `stat` as a daemon does."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pyerofs.daemon.control import Answer, ControlServer
from pyerofs.daemon.record import LayerRecord, Record, start_of
from pyerofs.daemon.stats import snapshot
from pyerofs.export.base import Export
from tests.support.controls import answering


def record_of(export: Export, identifier: str = "pyerofs-1-1", *, target: str = "/mnt") -> Record:
    pid = os.getpid()
    source = export.source
    part = LayerRecord(identifier, "/dev/nbd0", export.size, source.digest, source.layer)
    return Record(identifier, pid, start_of(pid), target, source.name, "nbd", "/dev/nbd0", (part,))


@contextmanager
def daemon(export: Export, record: Record) -> Iterator[None]:
    """The record is written and its control socket answers, as long as this goes on."""
    record.write()
    started = time.monotonic()
    server = ControlServer(record.control, {"stat": lambda _: Answer(snapshot([export], record, started))})
    try:
        with answering(server):
            yield
    finally:
        record.remove()
