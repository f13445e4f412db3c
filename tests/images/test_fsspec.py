"""fsspec's way to the files of images: found by its protocol, lazy, picklable, and good enough for pyarrow."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyerofs.images.fsspec import PyerofsFileSystem
from tests.support.fakeregistry import FakeRegistry
from tests.support.images import FakePusher, Layer, Published, push_image
from tests.support.trees import make_image

fsspec.register_implementation("pyerofs", PyerofsFileSystem, clobber=True)  # whatever is installed

# In a process of its own: a fork of this one would have its fixtures, and end them.
FORK = """
import multiprocessing, sys
from pyerofs.images.fsspec import PyerofsFileSystem
files, path = PyerofsFileSystem(options=sys.argv[1]), sys.argv[2]
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(files.cat_file(path), pool.apply(files.cat_file, (path,)), files.cat_file(path))
"""


def test_the_entry_point_leads_to_the_class() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["fsspec.specs"]["pyerofs"].partition(":")
    assert getattr(importlib.import_module(module), name) is PyerofsFileSystem


def filesystem(tmp_path: Path) -> Any:
    return fsspec.filesystem("pyerofs", options=f"oci.cache={tmp_path / 'cache'}", skip_instance_cache=True)


def test_a_url_opens_a_file(published: Published, tmp_path: Path) -> None:
    url = f"pyerofs://{published.plain}!/hello"
    with fsspec.open(url, options=f"oci.cache={tmp_path}") as file:
        assert file.read() == b"hello, world\n"
    with fsspec.open(url, "rt", options=f"oci.cache={tmp_path}") as text:
        assert text.read() == "hello, world\n"


def test_the_filesystem_s_functions(published: Published, tmp_path: Path) -> None:
    files = filesystem(tmp_path)
    root = f"{published.plain}!/"
    assert files.ls(f"{root}sub", detail=False) == [f"{root}sub/dir", f"{root}sub/hard link"]
    assert files.isdir(f"{root}sub") and files.isfile(f"{root}hello") and not files.exists(f"{root}nope")
    assert files.info(f"{root}hello")["size"] == 13
    assert files.info(f"{root}link")["type"] == "file" and files.info(f"{root}dangling")["type"] == "link"
    assert files.cat_file(f"{root}hello", 1, 5) == files.cat_file(f"{root}hello", -12, -8) == b"ello"
    assert files.find(f"{root}sub") == [f"{root}sub/dir/here", f"{root}sub/hard link"]
    assert files.glob(f"{root}many/file 19?") == [f"{root}many/file {number}" for number in range(190, 200)]
    assert sorted(files.cat([f"{root}hello", f"{root}sub/dir/here"]).values()) == [b"deep", b"hello, world\n"]
    files.get(f"{root}sub/dir", str(tmp_path / "got"), recursive=True)
    assert (tmp_path / "got/here").read_bytes() == b"deep"
    with pytest.raises(FileNotFoundError):
        files.open(f"{root}nope")
    with pytest.raises(OSError, match="Read-only"):
        files.open(f"{root}hello", "wb")


def test_it_survives_pickle_and_fork(published: Published, tmp_path: Path) -> None:
    files = filesystem(tmp_path)
    path = f"{published.plain}!/hello"
    assert files.cat_file(path) == b"hello, world\n"
    assert pickle.loads(pickle.dumps(files)).cat_file(path) == b"hello, world\n"
    command = [sys.executable, "-c", FORK, f"oci.cache={tmp_path / 'cache'}", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (" ".join([repr(b"hello, world\n")] * 3) + "\n", "")


def test_threads_share_it(published: Published, tmp_path: Path) -> None:
    files = filesystem(tmp_path)
    found = []

    def read(number: int) -> None:
        found.append(files.cat_file(f"{published.plain}!/many/file {number}") == b"%d" % number)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 16


def test_pyarrow_reads_a_column_lazily(fake: FakeRegistry, tmp_path: Path) -> None:
    """A column of ten is a tenth of the bytes."""
    root = tmp_path / "tree"
    root.mkdir()
    rows = 200_000
    table = pa.table({f"c{n}": pa.array([(i * 7919 * (n + 1)) % 1_000_003 for i in range(rows)]) for n in range(10)})
    pq.write_table(table, root / "data.parquet", compression="none", use_dictionary=False, row_group_size=rows)
    image = make_image(root, tmp_path / "image")
    push_image(FakePusher(fake), "model", "1", [Layer(image)])
    files = filesystem(tmp_path)
    column = pq.read_table(f"{fake.host}/model:1!/data.parquet", columns=["c3"], filesystem=files)
    assert column.column("c3").equals(table.column("c3"))
    cached = sum(path.stat().st_blocks * 512 for path in (tmp_path / "cache").rglob("data"))
    assert cached < image.stat().st_size / 2
