"""Which image of a layout a name means, as each tool has named it."""

from __future__ import annotations

import pytest

from pyerofs.errors import ImageError
from pyerofs.oci.layout_index import choose
from pyerofs.oci.location import Location
from pyerofs.oci.manifest import OCI_MANIFEST, Descriptor
from tests.support.images import digest_of

REF_NAME, CONTAINERD = "org.opencontainers.image.ref.name", "io.containerd.image.name"


def entry(number: int, ref: str = "", containerd: str = "") -> Descriptor:
    named = {REF_NAME: ref, CONTAINERD: containerd}
    return Descriptor(OCI_MANIFEST, digest_of(b"%d" % number), 1, {key: text for key, text in named.items() if text})


def find(entries: list[Descriptor], name: str | None) -> int:
    """The place in the list of what is found."""
    return entries.index(choose(entries, Location("oci", "/d", name)))


ENTRIES = [
    entry(0, "tag"),
    entry(1, "docker.io/library/bb:latest"),  # skopeo, podman
    entry(2, "latest", "docker.io/org/app:latest"),  # buildx
    entry(3, "latest", "quay.io/org/other:latest"),
    entry(4),
]


@pytest.mark.parametrize(("name", "number"), [
    ("tag", 0), ("docker.io/library/bb:latest", 1), ("bb", 1), ("bb:latest", 1), ("docker.io/org/app:latest", 2),
    ("org/app", 2), ("quay.io/org/other", 3), (f"@{digest_of(b'4')}", 4), (digest_of(b"0"), 0), ("@0", 0), ("@4", 4),
])  # fmt: skip
def test_names(name: str, number: int) -> None:
    assert find(ENTRIES, name) == number


@pytest.mark.parametrize(("name", "why"), [
    (None, "does not say which of several images is meant"), ("latest", "has several images with the name 'latest'"),
    ("no", "has no image with the name 'no'"), ("@5", "has no image"), (f"@{digest_of(b'9')}", "has no image"),
    ("quay.io/bb", "has no image"), ("TAG", "has no image"),
])  # fmt: skip
def test_a_message_lists_names_that_can_be_used(name: str | None, why: str) -> None:
    with pytest.raises(ImageError, match=f"^oci:/d {why}.*; there are oci:/d:tag, ") as caught:
        find(ENTRIES, name)
    listed = str(caught.value).partition("there are ")[2].split(", ")
    assert [find(ENTRIES, text.removeprefix("oci:/d:")) for text in listed] == [0, 1, 2, 3, 4]


def test_several_names_of_one_image() -> None:
    entries = [entry(0, "1.0"), entry(0, "latest"), entry(0)]
    assert find(entries, None) == find(entries, "1.0") == 0
    assert find(entries, "latest") == 1


def test_of_many_names_the_first_are_listed_and_the_others_counted() -> None:
    with pytest.raises(ImageError, match=r"there are oci:/d:t0, .*, oci:/d:t15, and 54 more$") as caught:
        find([entry(number, f"t{number}") for number in range(70)], None)
    assert len(str(caught.value)) < 500


def test_no_image() -> None:
    with pytest.raises(ImageError, match=r"^oci:/d has no image$"):
        find([], None)
