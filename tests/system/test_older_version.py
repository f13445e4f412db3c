"""What an older version has written is used by this one: its record, and its cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyerofs.cache import directory as cache_directory
from pyerofs.daemon import record
from pyerofs.daemon.record import Record, read_all
from pyerofs.export.file import open_blob
from tests.support.fakeregistry import FakeRegistry
from tests.support.images import FakePusher, Layer, push_image
from tests.support.olderversion import OlderMount, unpack


@pytest.fixture
def older(tmp_path: Path) -> OlderMount:
    return unpack(tmp_path)


def test_an_older_record_is_read(older: OlderMount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Member by member: whatever is new has a default."""
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(record, "DIRECTORY", str(tmp_path / "run"))
    found = Record.from_dict(older.record)
    written = json.loads(json.dumps(found.as_dict()))
    for now, then in ((written, older.record), (written["parts"][0], older.record["parts"][0])):
        assert {key: now[key] for key in then if key != "parts"} == {k: v for k, v in then.items() if k != "parts"}
    (tmp_path / "run" / f"{found.id}.json").write_text(json.dumps({**older.record, "boot": record.boot_id()}))
    assert [each.id for each in read_all(dead=True)] == [found.id]


def test_an_older_cache_is_read_and_its_unhashed_part_dropped(older: OlderMount, fake: FakeRegistry) -> None:
    """It is everybody's by its key, and nobody had hashed it: every byte of it is fetched again."""
    (entry,) = cache_directory.scan(str(older.cache))
    contents = cache_directory.describe(entry)
    assert contents is not None
    assert (contents.size, contents.present, contents.broken) == (older.present + older.absent, older.present, True)
    image = older.image.read_bytes()
    push_image(FakePusher(fake), "app", "1", [Layer(image)])
    with open_blob(f"{fake.host}/app:1", f"oci=0,oci.cache={older.cache}") as blob:
        assert blob.pread(len(image), 0) == image
    ranges = [seen.headers["range"].removeprefix("bytes=").split("-") for seen in fake.requests("/blobs/")]
    assert sum(int(last) - int(first) + 1 for first, last in ranges) == len(image)
