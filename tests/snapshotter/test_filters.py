"""containerd's filters."""

from __future__ import annotations

from typing import Any

import pytest

from pyerofs.snapshotter.filters import parse

INFO: dict[str, Any] = {
    "name": "sha256:a", "parent": "a b", "kind": "committed",
    "labels": {"containerd.io/snapshot.ref": "sha256:x", "plain": "1"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("filters", "fits"),
    [
        ([], True),
        (['labels."containerd.io/snapshot.ref"==sha256:x,parent=="a b"'], True),
        (['labels."containerd.io/snapshot.ref"==sha256:x,parent==""'], False),
        (['labels."containerd.io/snapshot.ref"=="sha256:y"'], False),
        (["labels.plain==1"], True),
        (["labels.plain"], True),
        (["labels.none"], False),
        (["labels.plain!=2"], True),
        (["labels.none!=2"], True),
        (["kind==active", "kind==committed"], True),
        (["name~=^sha256"], True),
        (['name~="^sha512"'], False),
        (["unknown==1"], False),
        ([""], True),
    ],
)
def test_a_snapshot_fits_or_not(filters: list[str], fits: bool) -> None:
    assert parse(filters)(INFO) is fits


@pytest.mark.parametrize("text", ["==", 'labels."open==1', "name=1", "name~=(", 'name=="\\x"', ",", "a b"])
def test_what_is_no_filter_is_an_error(text: str) -> None:
    with pytest.raises(Exception, match=r"."):
        parse([text])
