"""What a user calls a source: each text is one kind of thing, wherever it is used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyerofs.errors import UsageError
from pyerofs.oci.location import Location, number_of, same_registry

DIGEST = f"sha256:{'0a' * 32}"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("text", "kind", "path", "name"), [
    ("app", "registry", "app", None),
    ("docker://quay.io/org/app:1", "registry", "docker://quay.io/org/app:1", None),
    (f"quay.io/org/app@{DIGEST}", "registry", f"quay.io/org/app@{DIGEST}", None),
    ("ocistore:5000/app", "registry", "ocistore:5000/app", None),
    ("oci:dir", "oci", "{}/dir", None),
    ("oci:dir:app", "oci", "{}/dir", "app"),
    ("oci:dir:", "oci", "{}/dir", None),
    ("oci:a/b/../dir:v1.0-x", "oci", "{}/a/dir", "v1.0-x"),
    ("oci:/dir:docker.io/library/bb:latest", "oci", "/dir", "docker.io/library/bb:latest"),
    (f"oci:dir:@{DIGEST}", "oci", "{}/dir", f"@{DIGEST}"),
    (f"oci:dir:quay.io/a@{DIGEST}", "oci", "{}/dir", f"quay.io/a@{DIGEST}"),
    ("oci:dir:@3", "oci", "{}/dir", "@3"),
    ("oci-archive:a.tar", "oci-archive", "{}/a.tar", None),
    ("oci-archive:a.tar:localhost/app:1", "oci-archive", "{}/a.tar", "localhost/app:1"),
    ("oci-archive:-", "oci-archive", "-", None),
    ("docker-archive:a.tar", "docker-archive", "{}/a.tar", None),
    ("docker-archive:/a.tar:org/app:1", "docker-archive", "/a.tar", "org/app:1"),
    (f"docker-archive:a.tar:{DIGEST}", "docker-archive", "{}/a.tar", DIGEST),
    ("docker-archive:-:app", "docker-archive", "-", "app"),
])  # fmt: skip
def test_kinds(here: Path, text: str, kind: str, path: str, name: str | None) -> None:
    found = Location.parse(text)
    assert (found.kind, found.path, found.name) == (kind, path.format(here), name)
    assert Location.parse(str(found)) == found
    assert found.is_local == (kind != "registry")
    assert Location.parse(text, image=False) == found


@pytest.mark.parametrize("text", ["/img.erofs", "./img.erofs", "../img.erofs", "there", "dir:there"])
def test_paths_of_files(here: Path, text: str) -> None:
    """What looks or exists like one, unless something says that it is an image."""
    (here / "there").touch()
    (here / "dir:there").touch()
    found = Location.parse(text, image=False)
    assert (found.kind, found.name, found.is_local) == ("file", None, False)
    assert Path(found.path) == (here / text).resolve()
    if text == "there":
        assert Location.parse(text).kind == "registry"
    else:
        with pytest.raises(UsageError):
            Location.parse(text)


@pytest.mark.parametrize("name", [None, "app", "docker.io/app:1"])
def test_colons_in_what_exists(here: Path, name: str | None) -> None:
    """Else the first colon ends the path."""
    end = f":{name}" if name else ""
    for path in ("a:b", "c"):
        (here / path).mkdir()
        (here / path / "oci-layout").touch()
        assert Location.parse(f"oci:{path}{end}") == Location("oci", str(here / path), name)
    (here / "x:y:1.tar").touch()
    assert Location.parse(f"docker-archive:x:y:1.tar{end}") == Location("docker-archive", str(here / "x:y:1.tar"), name)
    assert Location.parse("oci:none:b:c") == Location("oci", str(here / "none"), "b:c")


@pytest.mark.parametrize(("text", "way"), [
    ("dir:/images", "skopeo copy dir:PATH oci:DIR:NAME"), ("dir:app", "skopeo copy"),
    ("containers-storage:localhost/app", "podman save --format oci-archive"), ("docker-daemon:app:1", "docker save"),
    ("ostree:app", "skopeo"), ("sif:a.sif", "skopeo"), ("tarball:a.tar", "skopeo"),
])  # fmt: skip
@pytest.mark.parametrize("image", [True, False])
def test_what_other_tools_have_is_refused_by_name(text: str, way: str, image: bool) -> None:
    """And never looked for at Docker Hub."""
    with pytest.raises(UsageError, match=f"images in {text.partition(':')[0]}: cannot be read: .*{way}"):
        Location.parse(text, image=image)


@pytest.mark.parametrize(("text", "error"), [
    ("oci:", r"names no layout directory: write oci:DIR\[:NAME\]"), ("oci::app", "names no layout directory"),
    ("oci:-", "names no layout directory"), ("oci-archive:", r"names no archive: write oci-archive:FILE\[:NAME\]"),
    ("docker-archive::a", "names no archive"), ("oci:dir:a b", "'a b' is not an image name"),
    ("oci:dir:@sha256:12", "is not an image name"), ("oci:dir:@", "is not an image name"),
    ("oci:dir:.hidden", "is not an image name"), ("oci:dir:a\nb", "is not an image name"),
    ("oci:dir:" + "a" * 513, "is not an image name"), ("", "is not an image name"),
])  # fmt: skip
def test_what_is_none(text: str, error: str) -> None:
    with pytest.raises(UsageError, match=error) as caught:
        Location.parse(text)
    assert "\n" not in str(caught.value)


def test_names_that_are_digests_or_numbers() -> None:
    assert [Location("oci", "/d", name).digest for name in (None, "a", DIGEST, f"@{DIGEST}")] == [
        None,
        None,
        DIGEST,
        DIGEST,
    ]
    assert [number_of(name) for name in (None, "a", "@", "@0", "@12", "@x")] == [None, None, None, 0, 12, None]


@pytest.mark.parametrize(("one", "other", "same"), [
    ("quay.io/a", "quay.io/b", True), ("quay.io/a", "docker.io/a", False), ("a", "b", True),
    ("oci:d", "quay.io/a", True),
    ("oci:d", "oci:e", True),
])  # fmt: skip
def test_same_registry(one: str, other: str, same: bool) -> None:
    assert same_registry(Location.parse(one), Location.parse(other)) is same


@pytest.mark.parametrize("text", ["/dir/img.erofs", "app:1", "oci:/d:x", "docker-archive:/a:b"])
def test_a_request_carries_it(text: str) -> None:
    """As it was made, whatever exists by then; one of an earlier version has the text."""
    made = Location.parse(text, image=False)
    again = Location.from_list(json.loads(json.dumps(made.as_list())))
    assert again == made
    assert again.registry == made.registry


def test_a_reference_is_parsed_once() -> None:
    made = Location.parse("docker://quay.io/a:1")
    assert (made.path, str(made.reference), made.registry) == ("docker://quay.io/a:1", "quay.io/a:1", "quay.io")
    assert made.reference is made.reference
    assert Location.parse("oci:d").registry == ""
    with pytest.raises(UsageError):
        Location("registry", "no image")
