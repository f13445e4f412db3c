"""What containerd's config.toml needs; 1.6 starts with it in tests/system/test_containerd.py."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from pyerofs.errors import UsageError
from pyerofs.snapshotter.configuration import render


def rendered(version: str) -> dict[str, Any]:
    return tomllib.loads(render(version, '/var/lib/"odd"', "/run/s.sock"))


@pytest.mark.parametrize("version", ["1.6", "1.7", "1.6.20~ds1", "v1.7.24"])
def test_before_2_the_annotations_are_cri_s(version: str) -> None:
    found = rendered(version)
    assert found["version"] == 2
    assert found["plugins"]["io.containerd.grpc.v1.cri"]["containerd"] == {
        "snapshotter": "pyerofs", "disable_snapshot_annotations": False,
    }  # fmt: skip
    assert found["proxy_plugins"]["pyerofs"] == {
        "type": "snapshot", "address": "/run/s.sock", "exports": {"root": '/var/lib/"odd"'},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("version", "system"), [("2.0", "linux"), ("2.1", "linux"), ("2.2.1", "linux"), ("2.3", "linux(+erofs)"),
                            ("2.3+", "linux(+erofs)"), ("2.4.0-beta.1", "linux(+erofs)"), ("3.0", "linux(+erofs)")]
)  # fmt: skip
def test_from_2_on_the_transfer_service_s_too(version: str, system: str) -> None:
    found = rendered(version)
    [unpack] = found["plugins"]["io.containerd.transfer.v1.local"]["unpack_config"]
    assert unpack["platform"] == found["proxy_plugins"]["pyerofs"]["platform"]
    assert unpack["platform"].startswith(f"{system}/")
    assert found["proxy_plugins"]["pyerofs"]["exports"]["enable_remote_snapshot_annotations"] == "true"
    assert found["plugins"]["io.containerd.cri.v1.images"]["snapshotter"] == "pyerofs"


@pytest.mark.parametrize(
    ("version", "why"), [("1.5.9", "is too old"), ("new", "is not a version"), ("", "is not a ver")]
)
def test_what_is_no_version_is_refused(version: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        render(version, "/r", "/s")
