"""Composition: every rule of which layers make up a mount, kept and broken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyerofs.erofs.compose import LOWERS_MAX, ROLE, PlannedLayer, compose, first_layers, role_of
from pyerofs.erofs.layer import TARGET
from pyerofs.errors import ImageError
from pyerofs.oci.manifest import Descriptor, Manifest

EROFS = "application/vnd.erofs"
TAR = "application/vnd.oci.image.layer.v1.tar"
INDEX = "application/vnd.erofs.chunk-index.v1"
INDEX2 = "application/vnd.erofs.chunk-index.v2"  # which nobody knows yet
LOWER, DATA, DEVICE = "overlay-lower", "overlay-data", "device"


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def image(*layers: tuple[str, str | None]) -> Manifest:
    """Of (media type, role), base first; an index is of the layer before it."""
    made = []
    for number, (kind, role) in enumerate(layers):
        annotations = {} if role is None else {ROLE: role}
        if kind == INDEX and number:
            annotations[TARGET] = digest(number - 1)
        made.append(Descriptor(kind, digest(number), 4096, annotations))
    return Manifest("application/vnd.oci.image.manifest.v1+json", tuple(made))


def shape(parts: tuple[PlannedLayer, ...]) -> list[tuple[int, str] | tuple[int, str, tuple[int, ...]]]:
    return [(p.layer, p.role, p.devices) if p.devices else (p.layer, p.role) for p in parts]


@pytest.mark.parametrize(("layers", "expected"), [
    ([(EROFS, None)], [(0, "lower")]),
    ([(EROFS, LOWER)], [(0, "lower")]),
    # A single EROFS layer beside ordinary ones is what it always was.
    ([(TAR, None), (EROFS, None), (TAR, None)], [(1, "lower")]),
    ([(TAR, None), (EROFS, LOWER)], [(1, "lower")]),
    ([(EROFS, None), (INDEX, None)], [(0, "lower")]),
    ([(EROFS, None), (EROFS, None)], [(0, "lower"), (1, "lower")]),
    ([(EROFS, LOWER), ("application/vnd.oci.image.layer.v1.erofs", None)], [(0, "lower"), (1, "lower")]),
    ([(EROFS, None)] * 100, [(n, "lower") for n in range(100)]),
    # Indexes are skipped, wherever they are.
    ([(EROFS, None), (INDEX, None), (EROFS, None), (INDEX, None)], [(0, "lower"), (2, "lower")]),
    ([(INDEX2, None), (EROFS, None), (INDEX2, "unheard"), (EROFS, None)], [(1, "lower"), (3, "lower")]),
    ([(f"{EROFS}+zstd", None), (EROFS, None)], [(0, "lower"), (1, "lower")]),
    # Devices, of any type, belong to the next layer that is none.
    ([(EROFS, DEVICE), (EROFS, None)], [(0, "device"), (1, "lower", (0,))]),
    ([(TAR, DEVICE), (EROFS, None)], [(0, "device"), (1, "lower", (0,))]),
    ([("application/octet-stream", DEVICE), (EROFS, LOWER)], [(0, "device"), (1, "lower", (0,))]),
    ([(f"{TAR}+zstd", DEVICE), (EROFS, LOWER)], [(0, "device"), (1, "lower", (0,))]),
    (
        [(TAR, DEVICE), (INDEX, None), (TAR, DEVICE), (EROFS, None), (TAR, DEVICE), (EROFS, None), (EROFS, None)],
        [(0, "device"), (2, "device"), (3, "lower", (0, 2)), (4, "device"), (5, "lower", (4,)), (6, "lower")],
    ),
    # Data belongs to the next layer with names, and may have devices as well.
    ([(EROFS, DATA), (EROFS, None)], [(0, "data"), (1, "lower")]),
    (
        [(TAR, DEVICE), (EROFS, DATA), (EROFS, DATA), (EROFS, LOWER), (EROFS, None)],
        [(0, "device"), (1, "data", (0,)), (2, "data"), (3, "lower"), (4, "lower")],
    ),
])  # fmt: skip
def test_the_whole_image(
    layers: list[tuple[str, str | None]], expected: list[tuple[int, str] | tuple[int, str, tuple[int, ...]]]
) -> None:
    manifest = image(*layers)
    parts = compose(manifest)
    assert shape(parts) == expected
    assert all(part.descriptor == manifest.layers[part.layer] for part in parts)


@pytest.mark.parametrize(("layers", "text"), [
    ([], "no layers at all"),
    ([(TAR, None), (TAR, None)], "no EROFS layer: an ordinary tar layer"),
    ([(TAR, DEVICE)], "no EROFS layer"),
    ([(INDEX, None)], "no EROFS layer"),
    ([(EROFS, None), (TAR, None), (EROFS, None)], f"layer 1 is not EROFS but an ordinary tar layer ({TAR}); choose"),
    ([(EROFS, None), (EROFS, None), (TAR, None)], "layer 2 is not EROFS"),
    ([(TAR, None), (TAR, DEVICE), (EROFS, None), (EROFS, None)], "layer 0 is not EROFS"),
    ([(EROFS, None), ("application/x-target", None), (EROFS, None)], "the unknown type application/x-target"),
    ([(EROFS, None), (TAR, LOWER), (EROFS, None)], "layer 1 is not EROFS but an ordinary tar layer"),
    ([(TAR, DATA), (EROFS, None)], "layer 0 is not EROFS but an ordinary tar layer"),
    ([(TAR, LOWER), (EROFS, None)], "layer 0 is not EROFS but an ordinary tar layer"),
    ([(EROFS, LOWER), (TAR, LOWER)], "layer 1 is not EROFS but an ordinary tar layer"),
    ([(TAR, "unheard"), (EROFS, None)], "layer 0: org.erofs.role is 'unheard'"),
    ([(EROFS, DEVICE)], "layer 0 has the role device, but no layer follows that could use it"),
    ([(EROFS, None), (TAR, DEVICE)], "layer 1 has the role device"),
    ([(EROFS, None), (EROFS, DATA)], "layer 1 has the role overlay-data"),
    ([(EROFS, None), (EROFS, DATA), (INDEX, None)], "layer 1 has the role overlay-data"),
    ([(EROFS, "overlay-upper")], "layer 0: org.erofs.role is 'overlay-upper', which is none of overlay-lower"),
    ([(EROFS, None), (EROFS, "")], "layer 1: org.erofs.role is ''"),
    ([(EROFS, None), (EROFS, "a\nb")], "layer 1: org.erofs.role is 'a\\nb'"),
    ([(f"{TAR}+gzip", DEVICE), (EROFS, None)], "layer 0 is a device, and compressed in a way that cannot be read"),
    ([("application/vnd.docker.image.rootfs.diff.tar.gzip", DEVICE), (EROFS, None)], "layer 0 is a device, and comp"),
    ([(INDEX, None), (EROFS, None), (EROFS, None)], "layer 0 is a chunk index, but not of the layer just before it"),
    ([(EROFS, None)] * (LOWERS_MAX + 1), f"more than {LOWERS_MAX}"),
])  # fmt: skip
def test_what_breaks_the_rules(layers: list[tuple[str, str | None]], text: str) -> None:
    with pytest.raises(ImageError) as caught:
        compose(image(*layers))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def with_target(manifest: Manifest, i: int, target: str | None) -> Manifest:
    layers = list(manifest.layers)
    annotations = {} if target is None else {TARGET: target}
    layers[i] = Descriptor(layers[i].media_type, layers[i].digest, 4096, annotations)
    return Manifest(manifest.media_type, tuple(layers))


@pytest.mark.parametrize(("kind", "target", "fits"), [
    (INDEX, digest(0), True),
    (INDEX, digest(2), False),
    (INDEX, None, False),
    (INDEX, "", False),
    (INDEX, digest(0).upper(), False),
    (INDEX2, digest(2), True),
    (INDEX2, None, True),
])  # fmt: skip
def test_the_target_of_a_chunk_index(kind: str, target: str | None, fits: bool) -> None:
    manifest = with_target(image((EROFS, None), (kind, None), (EROFS, None)), 1, target)
    if fits:
        assert shape(compose(manifest)) == [(0, "lower"), (2, "lower")]
    else:
        with pytest.raises(ImageError) as caught:
            compose(manifest)
        text = f"layer 1 is a chunk index, but not of the layer just before it: its {TARGET} is {target!a}"
        assert text in str(caught.value)


def test_nothing_lies_before_the_first_layer() -> None:
    manifest = with_target(image((INDEX, None), (EROFS, None), (EROFS, None)), 0, digest(2))
    with pytest.raises(ImageError, match="layer 0 is a chunk index, but not of the layer just before it"):
        compose(manifest)


@pytest.mark.parametrize(("kind", "role", "expected"), [
    (EROFS, None, "lower"),
    (EROFS, DATA, "data"),
    (TAR, DEVICE, "device"),
    (TAR, None, None),
    (INDEX, None, None),
    (INDEX, LOWER, None),
    (INDEX2, "unheard", None),
])  # fmt: skip
def test_the_role_of_a_layer(kind: str, role: str | None, expected: str | None) -> None:
    assert role_of(image((kind, role)).layers[0]) == expected


def test_a_layer_that_is_named_comes_with_its_devices() -> None:
    manifest = image((EROFS, None), (TAR, DEVICE), (INDEX, None), (TAR, DEVICE), (EROFS, None), (TAR, None))
    assert shape(compose(manifest, 0)) == [(0, "lower")]
    expected = [(1, "device"), (3, "device"), (4, "lower", (1, 3))]
    assert shape(compose(manifest, 4)) == expected
    assert shape(compose(manifest, blob=digest(4))) == expected
    with pytest.raises(ImageError, match="layer 5 is not EROFS"):
        compose(manifest, 5)
    with pytest.raises(ImageError, match="no layer 9"):
        compose(manifest, 9)


@pytest.mark.parametrize(("number", "expected"), [
    (0, [(0, "lower")]),
    (1, [(1, "lower")]),  # the device before it is not its own
    (2, [(0, "device"), (1, "device"), (2, "lower", (0, 1))]),
    (3, [(3, "lower")]),
    (4, [(0, "device"), (1, "device"), (2, "data", (0, 1)), (3, "data"), (4, "lower")]),
    (5, [(5, "lower")]),
    # By itself it would show its files with nothing but zeros in them.
    (7, [(5, "device"), (6, "data", (5,)), (7, "lower")]),
    (10, [(8, "data"), (9, "device"), (10, "lower", (9,))]),
])  # fmt: skip
def test_a_layer_that_is_named_is_mounted_whatever_its_role(
    number: int, expected: list[tuple[int, str] | tuple[int, str, tuple[int, ...]]]
) -> None:
    roles = (DEVICE, DEVICE, DATA, DATA, "of another time", DEVICE, DATA, LOWER, DATA, DEVICE, None)
    manifest = image(*((EROFS, role) for role in roles))
    assert shape(compose(manifest, number)) == expected
    assert shape(compose(manifest, blob=digest(number))) == expected


kinds = st.sampled_from([EROFS, TAR, INDEX, f"{EROFS}+zstd", f"{TAR}+gzip", f"{INDEX}.erofs"])
roles = st.sampled_from([None, LOWER, DATA, DEVICE, "unheard"])


@given(st.lists(st.tuples(kinds, roles), max_size=8))
def test_whatever_the_layers_are(layers: list[tuple[str, str | None]]) -> None:
    """Either one line that says why not; or layers in order, the last with names, each device needed exactly once."""
    try:
        parts = compose(image(*layers))
    except ImageError as e:
        assert "\n" not in str(e)
        return
    numbers = [part.layer for part in parts]
    assert numbers == sorted(set(numbers))
    assert parts[-1].role == "lower"
    devices = [part.layer for part in parts if part.role == "device"]
    assert [number for part in parts for number in part.devices] == devices
    for part in parts:
        assert all(number < part.layer for number in part.devices)


def test_first_layers_are_an_image_by_themselves() -> None:
    whole = image((EROFS, DEVICE), (EROFS, None), (EROFS, LOWER))
    assert shape(compose(first_layers(whole, 2))) == [(0, "device"), (1, "lower", (0,))]
    assert first_layers(whole, 3) == whole
    with pytest.raises(ImageError, match=r"^the image has 3 layers, not 4$"):
        first_layers(whole, 4)
    with pytest.raises(ImageError, match=r"no layer follows"):
        compose(first_layers(image((EROFS, None), (EROFS, DEVICE), (EROFS, None)), 2))
