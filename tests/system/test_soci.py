"""SOCI indexes: made by `pyerofs index` at docker-registry, found again, and mounted by (-t erofs.fuse)."""

from __future__ import annotations

import json
import random
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyerofs.oci import soci
from tests.support import skopeo
from tests.support.images import OCI_INDEX, OCI_MANIFEST, digest_of
from tests.support.needs import need
from tests.support.ordinary import GZIP, LAYERS, TAR, ZSTD, Layout, directory, file, tars
from tests.support.ordinaryscene import FUSE, digest_of_image, entries, need_to_mount
from tests.support.realregistry import LoggingRegistry
from tests.support.scene import Done, Scene, by_pyerofs
from tests.support.tarballs import archive
from tests.support.trees import Entry, assert_same, survey


@pytest.fixture(autouse=True)
def needs() -> None:
    need_to_mount()


def large(seed: int) -> bytes:
    """A layer that is worth an index, with all that layers may have but sparse files."""
    rng = random.Random(seed)
    words = [rng.randbytes(40) for _ in range(3000)]
    text = b"".join(rng.choices(words, k=60_000))
    return archive(
        *LAYERS[0],
        directory("many", mtime=seed),
        *(file(f"many/{seed}-{number}", text[number << 17 :][: 900_000 + number]) for number in range(7)),
        file(f"many/{seed}-random", rng.randbytes(1_500_000)),
    )


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """app: two layers that get an index and some that do not; arm: the same for two platforms."""
    made = Layout(tmp_path_factory.mktemp("soci") / "layout")
    layers = [large(1), *tars()[1:3], large(2)]
    app = made.image(layers, [GZIP, GZIP, GZIP, TAR])
    made.tag(app, "app")
    other = made.image([large(1), archive(file("arm", b"64"))], architecture="arm64")
    places = [{"os": "linux", "architecture": name} for name in ("amd64", "arm64")]
    entries = [{**entry, "platform": place} for entry, place in zip((app, other), places, strict=True)]
    made.tag(made.index(entries), "both")
    made.tag(made.image([archive(file("one", random.Random(3).randbytes(2_000_000)))], [ZSTD]), "zstd")
    return made


@pytest.fixture(scope="module")
def expected(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Entry]:
    return survey(skopeo.unpacked(f"{layout.path}:app", tmp_path_factory.mktemp("umoci") / "bundle"))


@pytest.fixture
def registry(scene: Scene) -> Iterator[LoggingRegistry]:
    need("docker-registry", "docker-registry")
    with LoggingRegistry(scene.directory / "registry") as made:
        yield made


def publish(registry: LoggingRegistry, layout: Layout, tag: str = "app") -> str:
    skopeo.copy(f"oci:{layout.path}:{tag}", f"docker://{registry.host}/org/{tag}:1")
    return f"{registry.host}/org/{tag}:1"


def index(scene: Scene, image: str, *arguments: str) -> Done:
    """On another machine, so to say: with another cache."""
    return scene.run("index", "--min-size", "1M", "-o", f"oci.cache={scene.directory}/other", *arguments, image)


def lazy_devices(scene: Scene) -> int:
    """How many devices the cache has that are read by a chunk map."""
    return sum(row["digest"].startswith("map") or "+map" in row["digest"] for row in entries(scene))


def get(registry: LoggingRegistry, path: str) -> Any:
    return json.loads(fetch(registry, path))


def get_digest(registry: LoggingRegistry, path: str) -> str:
    return digest_of(fetch(registry, path))


def fetch(registry: LoggingRegistry, path: str) -> bytes:
    headers = {"Accept": f"{OCI_MANIFEST}, {OCI_INDEX}"}
    asked = urllib.request.Request(f"http://{registry.host}/v2/org/{path}", headers=headers)
    with urllib.request.urlopen(asked, timeout=30) as answer:
        data: bytes = answer.read()
        return data


def test_index_that_refers_to_an_image(
    scene: Scene, registry: LoggingRegistry, layout: Layout, expected: dict[str, Entry]
) -> None:
    """The very same image, lazily, where the user allows it; under oci.verify=require only one that the user names."""
    image = publish(registry, layout)
    done = index(scene, image)
    found = done.out.split()[0]
    assert done.out == f"{found}  index of {image} for linux/amd64\n"
    assert done.err.count("compressed zTOC") == 2 and done.err.count("pushed") == 4
    again = index(scene, image)
    assert again.out == done.out and again.err.count("already there") == 4 and again.err.count("kept") == 2

    scene.mount_image(image, "oci.soci=v1", fstype=FUSE)
    assert lazy_devices(scene) == 2
    assert_same(expected, scene.mnt)
    by_pyerofs(scene)
    assert digest_of_image(layout, "app") == get_digest(registry, "app/manifests/1")

    for options in ([], ["oci.verify=require", "oci.soci=v1"]):
        done = scene.mount_image(image, *options, fstype=FUSE)
        # What was made by the index does not count.
        assert "(3 layers of tar+gzip, 1 layer of tar" in done.err, options
        assert_same(expected, scene.mnt)
        by_pyerofs(scene)
        shutil.rmtree(scene.cache)
        scene.mount_image(image, "oci.soci=v1", fstype=FUSE)
        by_pyerofs(scene)
    scene.mount_image(image, "oci.verify=require", f"oci.soci={found}", fstype=FUSE)
    assert lazy_devices(scene) == 2
    assert_same(expected, scene.mnt)
    by_pyerofs(scene)


def test_copy_that_names_its_index(
    scene: Scene, registry: LoggingRegistry, layout: Layout, expected: dict[str, Entry]
) -> None:
    """With all platforms; it is vouched for by its own digest. SOCI's tools find what they look for."""
    image = publish(registry, layout, "both")
    done = index(scene, image, "--tag", "lazy")
    assert done.out.endswith(f"  {registry.host}/org/both:lazy\n")
    assert index(scene, image, "--tag", "lazy").out == done.out
    root = get(registry, "both/manifests/lazy")
    rows = root["manifests"]
    assert [row["platform"]["architecture"] for row in rows] == ["amd64", "arm64", "amd64", "arm64"]
    for copy, listed in zip(rows[:2], rows[2:], strict=True):
        manifest, found = (get(registry, f"both/manifests/{row['digest']}") for row in (copy, listed))
        assert manifest["annotations"] == copy["annotations"] == {soci.INDEX_DIGEST: listed["digest"]}
        assert listed["artifactType"] == found["config"]["mediaType"] == soci.BOUND
        assert listed["annotations"] == {"com.amazon.soci.image-manifest-digest": copy["digest"]}
        assert [row["mediaType"] for row in found["layers"][:2]] == [soci.PACKED_ZTOC, soci.ZTOC]
        assert {row["annotations"]["com.amazon.soci.image-layer-digest"] for row in found["layers"]} <= {
            layer["digest"] for layer in manifest["layers"]
        }
    lazy = f"{registry.host}/org/both:lazy"
    inspected = json.loads(scene.run("inspect", "--json", "-o", "oci.platform=linux/amd64", lazy).out)
    assert sum(layer["lazy"] for layer in inspected["layers"]) == 2 and inspected["notes"] == []
    assert not any(layer["lazy"] for layer in json.loads(scene.run("inspect", "--json", image).out)["layers"])
    scene.mount_image(lazy, "oci.platform=linux/amd64", "oci.verify=require", fstype=FUSE)
    assert lazy_devices(scene) == 2
    assert_same(expected, scene.mnt)
    by_pyerofs(scene)
    scene.mount_image(lazy, "oci.platform=linux/arm64", fstype=FUSE)
    assert (scene.mnt / "arm").read_bytes() == b"64"
    by_pyerofs(scene)
    moved = f"{registry.host}/elsewhere/app:1"
    scene.run("push", lazy, moved)  # the index goes along
    shutil.rmtree(scene.cache)
    scene.mount_image(moved, "oci.platform=linux/amd64", "oci.verify=require", fstype=FUSE)
    assert lazy_devices(scene) == 2
    by_pyerofs(scene)


def test_index_of_an_image_in_a_layout(
    scene: Scene, layout: Layout, expected: dict[str, Entry], tmp_path: Path
) -> None:
    place = f"oci:{tmp_path}/copy"
    skopeo.copy(f"oci:{layout.path}:app", f"{place}:app")
    done = scene.run("index", f"{place}:app")
    assert "only at a registry can an index refer to an image" in done.err
    index(scene, f"{place}:app", "--tag", "lazy")
    scene.mount_image(f"{place}:lazy", "oci.verify=require", fstype=FUSE)
    assert lazy_devices(scene) == 2
    assert_same(expected, scene.mnt)
    by_pyerofs(scene)


def test_index_of_nothing(scene: Scene, registry: LoggingRegistry, layout: Layout) -> None:
    """Of what has no spans, or is too small, with a word for it; nothing is written."""
    image = publish(registry, layout, "zstd")
    done = scene.run("index", "--min-size", "1K", image)
    assert "gets no zTOC: its compression has none" in done.err and "nothing to index" in done.err
    assert "no layer of it is an archive of 10485760 bytes or more" in scene.run("index", image).err
    assert get(registry, "zstd/tags/list")["tags"] == ["1"]


@pytest.mark.parametrize("lost", ["index", "ztoc", "ztoc damaged"])
def test_index_that_is_no_good_is_done_without(
    scene: Scene, registry: LoggingRegistry, layout: Layout, expected: dict[str, Entry], lost: str
) -> None:
    """The image is mounted as if there were none, and it is said."""
    image = publish(registry, layout)
    index(scene, image, "--tag", "lazy")
    root = get(registry, "app/manifests/lazy")
    listed = root["manifests"][1]["digest"]
    found = get(registry, f"app/manifests/{listed}")
    digest = listed if lost == "index" else found["layers"][0]["digest"]
    files = scene.directory / "registry"
    if lost == "ztoc damaged":
        [stored] = files.rglob(f"{digest[7:]}/data")
        data = bytearray(stored.read_bytes())
        data[len(data) // 2] ^= 1
        stored.write_bytes(data)
    else:
        for known in [*files.rglob(f"{digest[7:]}/link")]:  # by which a repository has it
            known.unlink()
        registry.stop()  # it remembers what it had
        registry.start()
    noted = json.loads(scene.run("inspect", "--json", f"{registry.host}/org/app:lazy").out)["notes"]
    assert [note.startswith("its SOCI index cannot be used: ") for note in noted] == [True] * (lost == "index")
    done = scene.mount_image(f"{registry.host}/org/app:lazy", fstype=FUSE)
    said = "its SOCI index cannot be used: " if lost == "index" else "its table of contents cannot be used: "
    assert said in done.err
    assert lazy_devices(scene) == (0 if lost == "index" else 1)
    assert_same(expected, scene.mnt)
    by_pyerofs(scene)
