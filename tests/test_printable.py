"""What comes from outside and goes to a terminal: one line stays one, and nothing in it is obeyed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyerofs.cli import main
from pyerofs.images import inspect
from pyerofs.mounting import list
from pyerofs.mounting import stat as mount_stat
from pyerofs.oci.layout import Layout
from pyerofs.printable import every_text, many_lines, one_line

EVIL = "a\x1b[2Jb\nc\rd\x9be\u202ef" + os.fsdecode(b"\xff")
TAMED = r"a\x1b[2Jb\nc\rd\x9be\u202ef\xff"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("/mnt/bücher: 5 µs", "/mnt/bücher: 5 µs"),
        (EVIL, TAMED),
        ("\t\0\x7f\u2028\ud800\U000e0001", r"\t\x00\x7f\u2028\ud800\U000e0001"),
    ],
)
def test_one_line(text: str, expected: str) -> None:
    assert one_line(text) == expected


@given(st.text(st.characters(exclude_categories=())))
def test_one_line_of_anything(text: str) -> None:
    shown = one_line(text)
    assert shown.isprintable()
    assert shown.encode().decode() == shown
    assert one_line(shown) == shown
    assert many_lines(f"{text}\nb").endswith("\nb")


def test_every_text() -> None:
    assert every_text({EVIL: [EVIL, 7, None, {"x": EVIL}]}) == {TAMED: [TAMED, 7, None, {"x": TAMED}]}


def clean(text: str) -> None:
    assert all(line.isprintable() for line in text.split("\n")), repr(text)
    assert text.encode()


def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    layout = Layout.create(str(tmp_path / "images"))
    from pyerofs.oci.raw_manifest import RawManifest

    layer = {
        "mediaType": "application/vnd.erofs.layer.v1",
        "digest": f"sha256:{'0' * 64}",
        "size": 5,
        "annotations": {f"org.erofs.{EVIL[:-1]}": EVIL[:-1]},
    }
    document = RawManifest.of(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": layer["digest"], "size": 2},
            "layers": [layer],
        },
        "application/vnd.oci.image.manifest.v1+json",
    )
    layout.add_document(document)
    layout.tag(document, "app")
    found = inspect.inspect(f"oci:{layout.path}:app")
    clean(inspect.render(found))
    assert f"org.erofs.{TAMED[:-4]}: {TAMED[:-4]}\n" in inspect.render(found)
    assert main.main(["inspect", f"oci:{layout.path}:app"]) == 0
    clean(capsys.readouterr().out)
    assert main.main(["inspect", "--json", f"oci:{layout.path}:app"]) == 0
    assert EVIL[:-1] in json.loads(capsys.readouterr().out)["layers"][0]["annotations"][f"org.erofs.{EVIL[:-1]}"]


def test_error_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / EVIL)
    for arguments in (["read", path], ["inspect", path], ["stat", path], ["umount", path], [path]):
        assert main.main(arguments) != 0
        err = capsys.readouterr().err
        clean(err)
        assert err.count("\n") == 1
        assert TAMED.removesuffix(r"\xff") in err


def test_cache_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["cache", "ls", "--dir", str(tmp_path / EVIL)]) == 0
    out = capsys.readouterr().out
    clean(out)
    assert out.count("\n") == 1
    assert TAMED in out


STATUS = {
    "version": 1, "id": "i", "target": EVIL, "source": EVIL, "digest": EVIL, "layer": 0, "driver": "nbd",
    "device": EVIL, "parts": [], "pid": 1, "supervisor_pid": None, "restarts": 0, "error": EVIL,
}  # fmt: skip


def test_stat() -> None:
    shown = mount_stat.render(STATUS)
    clean(shown)
    assert shown.startswith(f"{TAMED}: {TAMED}\n")
    assert mount_stat.rates(STATUS, STATUS) == TAMED


def test_list(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    row = dict.fromkeys(("target", "source", "device", "driver", "pid", "present", "health"), EVIL)
    monkeypatch.setattr(list, "mounts", lambda: [{**row, "parts": []}])
    assert main.main(["list"]) == 0
    out = capsys.readouterr().out
    clean(out)
    assert out.count("\n") == 2  # with its header


def test_metrics(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The format has escapes for a line's end alone."""
    monkeypatch.setattr(mount_stat, "query_all", lambda records: [STATUS])
    assert main.main(["metrics"]) == 0
    text = capsys.readouterr().out
    clean(text)
    assert 'target="a\ufffd[2Jb\\nc\ufffdd\ufffde\ufffdf' in text
