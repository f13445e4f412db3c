"""How a tar layer is read: lazily, at once, or as a stream, and why."""

from __future__ import annotations

import pytest

from pyerofs.erofs.layer_way import LAZY_MIN, LayerWay, judge_layers
from pyerofs.oci.manifest import Descriptor
from tests.support.lazyimages import CONTAINERS, TOC_DIGEST
from tests.support.ordinary import GZIP, ZSTD

DIGEST = "sha256:" + "1" * 64
STARGZ_TOC, CHUNKED_TOC = {TOC_DIGEST: DIGEST}, {f"{CONTAINERS}manifest-checksum": DIGEST}


@pytest.mark.parametrize(
    ("kind", "annotations", "size", "way"),
    [
        (GZIP, STARGZ_TOC, LAZY_MIN, LayerWay("eStargz", True)),
        (ZSTD, CHUNKED_TOC, LAZY_MIN, LayerWay("zstd:chunked", True)),
        (GZIP, STARGZ_TOC, LAZY_MIN - 1, LayerWay("eStargz", False, "it is small")),
        (GZIP, {}, LAZY_MIN, LayerWay("", False, "it has no table of contents")),
    ],
)
def test_a_layer_is_judged_by_its_descriptor(kind: str, annotations: dict[str, str], size: int, way: LayerWay) -> None:
    assert judge_layers([Descriptor(kind, DIGEST, size, annotations)]) == [way]


def test_two_tables_are_none() -> None:
    [way] = judge_layers([Descriptor(ZSTD, DIGEST, LAZY_MIN, {**STARGZ_TOC, **CHUNKED_TOC})])
    assert (way.format, way.lazy) == ("", False)
    assert way.why.startswith("its table of contents cannot be used: there are two")
