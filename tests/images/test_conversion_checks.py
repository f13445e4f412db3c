"""What is said before an ordinary image is fetched: no room, another platform."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyerofs.errors import ImageError, UnavailableError
from pyerofs.images.conversion_checks import check_platform, check_room
from pyerofs.oci.manifest import Descriptor
from pyerofs.oci.platforms import Platform

DIGEST = "sha256:" + "0" * 64


def test_layers_that_cannot_fit_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"free, and the layers take 1024.0 TiB: free some room, or .*oci.cache"):
        check_room(str(tmp_path), [Descriptor("", DIGEST, 1 << 50)])
    check_room(str(tmp_path), [Descriptor("", DIGEST, 1)])


def test_an_image_for_another_machine_is_a_warning_or_refused() -> None:
    said: list[str] = []
    config = {"os": "linux", "architecture": "riscv64"}
    check_platform(config, None, said.append)
    here = Platform.host()
    assert said == [f"the image is for linux/riscv64, and this machine is {here}: its programs do not run here"]
    with pytest.raises(ImageError, match=r"it is for linux/riscv64, and oci.platform=linux/amd64 was asked for"):
        check_platform(config, Platform("linux", "amd64"), said.append)
    check_platform(config, Platform("linux", "riscv64"), said.append)
    check_platform({}, None, said.append)
    assert len(said) == 1
