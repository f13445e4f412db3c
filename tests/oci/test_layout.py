"""OCI layout directories: what is written is whole, what is read has been looked through."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from pyerofs.errors import ImageError, PyerofsError, UsageError
from pyerofs.oci.layout import Layout
from pyerofs.oci.manifest import OCI_MANIFEST, Descriptor
from pyerofs.oci.raw_manifest import RawManifest, digest_of
from tests.support.skopeo import blobs, index, tags


def document(text: str) -> RawManifest:
    return RawManifest.of({"schemaVersion": 2, "layers": [], "annotations": {"a": text}}, OCI_MANIFEST)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.create(str(tmp_path / "images"))


def files(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())


def test_made_as_the_specification_says(layout: Layout) -> None:
    path = Path(layout.path)
    assert json.loads((path / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert index(path) == {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [],
    }
    Layout.create(layout.path)
    Layout(layout.path)


def test_tags(layout: Layout, tmp_path: Path) -> None:
    one, two, three = (document(text) for text in ("1", "2", "3"))
    for written in (one, two, three):
        layout.add_document(written)
    layout.tag(one, "a")
    layout.tag(two, "b")
    layout.tag(two, "a")
    layout.tag(three, None)
    layout.tag(three, None)
    assert tags(Path(layout.path)) == {"a": two.digest, "b": two.digest, "": three.digest}
    assert len(index(Path(layout.path))["manifests"]) == 3
    assert layout.document(layout.find("b")) == two
    with pytest.raises(ImageError, match=r"several images is meant; there are .*images:b, .*images:a, .*:@sha256:\w+$"):
        layout.find(None)
    with pytest.raises(ImageError, match="no image with the name 'c'"):
        layout.find("c")


def test_the_only_image_needs_no_tag(layout: Layout) -> None:
    with pytest.raises(ImageError, match=r"has no image$"):
        layout.find(None)
    one = document("1")
    layout.add_document(one)
    layout.tag(one, "a")
    assert layout.find(None).digest == one.digest


def test_what_others_wrote_stays(layout: Layout) -> None:
    path = Path(layout.path) / "index.json"
    entry = {"mediaType": OCI_MANIFEST, "digest": digest_of(b""), "size": 0, "x": {"y": 1}}
    path.write_text(json.dumps({"schemaVersion": 2, "manifests": [entry], "annotations": {"k": "v"}}))
    layout.tag(document("1"), "a")
    found = index(Path(layout.path))
    assert found["annotations"] == {"k": "v"}
    assert found["manifests"][0] == entry


def test_blobs(layout: Layout, tmp_path: Path) -> None:
    outside = tmp_path / "file"
    outside.write_bytes(b"outside")
    layout.add_blob(digest_of(b"outside"), str(outside))
    with layout.scratch() as directory:
        inside = Path(directory) / "file"
        inside.write_bytes(b"inside")
        layout.add_blob(digest_of(b"inside"), str(inside))
        assert not inside.exists()
    assert outside.exists()
    assert sorted(blobs(Path(layout.path)).values()) == [b"inside", b"outside"]
    assert layout.has(digest_of(b"inside"), 6)
    assert not layout.has(digest_of(b"inside"), 7)
    assert not layout.has(digest_of(b"never"), 5)
    with pytest.raises(ImageError, match="was changed"):
        layout.add_blob(digest_of(b"other"), str(outside))
    assert sorted(blobs(Path(layout.path)).values()) == [b"inside", b"outside"]
    assert not [name for name in files(Path(layout.path)) if "pyerofs" in name]


def test_a_corrupt_blob_counts_as_absent(layout: Layout) -> None:
    path = Path(layout.blob_path(digest_of(b"data")))
    path.write_bytes(b"dat4")
    assert not layout.has(digest_of(b"data"), 4)
    with pytest.raises(ImageError, match="is corrupt"):
        layout.check(digest_of(b"data"), 4)
    with pytest.raises(ImageError, match="is corrupt"):
        layout.document(Descriptor(OCI_MANIFEST, digest_of(b"data"), 4))
    with pytest.raises(ImageError, match="does not have the manifest"):
        layout.document(Descriptor(OCI_MANIFEST, digest_of(b"none"), 4))


@pytest.mark.parametrize(("name", "content", "error"), [
    ("oci-layout", None, "is not an OCI layout directory"),
    ("oci-layout", b"{", "unknown imageLayoutVersion"),
    ("oci-layout", b"[]", "unknown imageLayoutVersion"),
    ("oci-layout", b'{"imageLayoutVersion":"2.0.0"}', "unknown imageLayoutVersion"),
    ("index.json", None, "cannot read .*index.json"),
    ("index.json", b"no json", "index.json: the manifest is not JSON"),
    ("index.json", b'{"layers":[]}', "index.json: it is not an index"),
    ("index.json", b'{"manifests":[{"digest":"x"}]}', "malformed"),
])  # fmt: skip
def test_what_is_no_layout(layout: Layout, name: str, content: bytes | None, error: str) -> None:
    path = Path(layout.path) / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PyerofsError, match=error):
        Layout(layout.path).find("a")


def test_nothing_is_put_among_other_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(UsageError, match="other things in it"):
        Layout.create(str(tmp_path))
    with pytest.raises(PyerofsError, match="cannot make"):
        Layout.create(str(tmp_path / "file"))
    assert files(tmp_path) == ["file"]


def test_many_writers(layout: Layout) -> None:
    def work(number: int) -> None:
        one = document(str(number))
        layout.add_document(one)
        layout.tag(one, f"t{number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(tags(Path(layout.path))) == {f"t{number}" for number in range(20)}
