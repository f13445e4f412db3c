"""Layers made by the formats' own tools: what their TOCs say is what the archives hold."""

from __future__ import annotations

import pytest

from pyerofs.tar.toc.formats import toc_format
from tests.support.lazyimages import STORABLE, CtrRemote, LazyLayer, by_skopeo, lazy_layers
from tests.support.ordinary import Layout
from tests.support.tarballs import archive
from tests.support.tocs import assert_exact, read

OPTIONS = {
    "estargz": ("--estargz",),
    "estargz-chunks": ("--estargz", "--estargz-chunk-size", "500000"),
    "zstdchunked": ("--zstdchunked",),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[LazyLayer]]:
    """Layers of images by OPTIONS, and skopeo."""
    directory = tmp_path_factory.mktemp("lazy")
    made = Layout(directory / "layout")
    source = made.tag(made.image([archive(*layer) for layer in STORABLE]), "app")
    with CtrRemote(directory / "containerd") as converter:
        for tag, options in OPTIONS.items():
            converter.convert(source, made.path, tag, *options)
    by_skopeo(source, directory / "skopeo", "app")
    found = {tag: lazy_layers(made.path, tag) for tag in OPTIONS}
    return {**found, "skopeo": lazy_layers(directory / "skopeo", "app")}


@pytest.mark.parametrize("tag", [*OPTIONS, "skopeo"])
def test_a_toc_says_what_the_archive_holds(images: dict[str, list[LazyLayer]], tag: str) -> None:
    layers = images[tag]
    assert len(layers) == len(STORABLE)
    wanted = "eStargz" if tag.startswith("estargz") else "zstd:chunked"
    for layer in layers:
        assert toc_format(layer.media_type, layer.annotations) == wanted
        assert_exact(layer)


def test_a_large_file_lies_in_many_units(images: dict[str, list[LazyLayer]]) -> None:
    _, entries = read(images["estargz-chunks"][2])
    (large,) = (entry for entry in entries if entry.entry.name == b"large")
    assert [piece.length for piece in large.pieces] == [500_000] * 9 + [300_000]
    assert len({piece.unit for piece in large.pieces}) == 10
