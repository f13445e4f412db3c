"""fsspec's way to the files of images: fsspec.open("pyerofs://quay.io/org/model:1!/weights.bin").

A URL is the image as `pyerofs mount` takes it, an exclamation mark, and a path in it. Registered by the entry point of
the group fsspec.specs; needs `pip install 'pyerofs[fsspec]'`.
"""

from __future__ import annotations

import io
import os
import stat
import threading
from typing import Any, ClassVar

from fsspec.spec import AbstractFileSystem

from ..errors import UsageError
from .image_files import ImageFiles

_KINDS = {stat.S_IFDIR: "directory", stat.S_IFREG: "file", stat.S_IFLNK: "link"}


class PyerofsFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Files of images, read lazily. `options`: as after -o, such as "oci.platform=linux/amd64". Thread-safe.

    Bytes are cached where all of pyerofs caches them, so fsspec's own caches bring nothing. A copy by pickle, or in a
    process after fork, opens the images anew.
    """

    protocol: ClassVar[str] = "pyerofs"
    root_marker: ClassVar[str] = ""
    cachable: ClassVar[bool] = True

    def __init__(self, options: str | list[str] = (), **kwargs: Any) -> None:  # type: ignore[assignment]  # fsspec has no types
        super().__init__(options=options, **kwargs)
        self._options = options
        self._lock = threading.Lock()
        self._images: dict[str, ImageFiles] = {}
        self._pid = os.getpid()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        text = os.fspath(path).removeprefix("pyerofs://")
        image, mark, inner = text.partition("!")
        return f"{image}!/{inner.strip('/')}" if mark else text

    @classmethod
    def _parent(cls, path: str) -> str:
        image, _, inner = cls._strip_protocol(path).partition("!/")
        return f"{image}!/{inner.rpartition('/')[0]}"

    def _find(self, path: str) -> tuple[ImageFiles, str, str]:
        """Return the image, its name with the mark, and the path in it."""
        name, mark, inner = self._strip_protocol(path).partition("!")
        if not mark:
            raise UsageError(f"{path!r} names no file of an image: write pyerofs://IMAGE!/PATH")
        with self._lock:
            if self._pid != os.getpid():
                self._images, self._pid = {}, os.getpid()  # a fork has left the threads of those behind
            image = self._images.get(name)
            if image is None:
                image = self._images[name] = ImageFiles(name, self._options)
        return image, f"{name}!", inner or "/"

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        image, name, inner = self._find(path)
        return self._info(image, name, inner)

    def _info(self, image: ImageFiles, name: str, inner: str) -> dict[str, Any]:
        found = image.lstat(inner)
        kind = _KINDS.get(stat.S_IFMT(found.mode), "other")
        result: dict[str, Any] = {"islink": kind == "link"}
        if kind == "link":
            result["destination"] = image.readlink(inner)
            if image.exists(inner):
                found = image.stat(inner)
                kind = _KINDS.get(stat.S_IFMT(found.mode), "other")
        return result | {
            "name": name + inner,
            "size": found.size if kind == "file" else 0,
            "type": kind,
            "mode": found.mode,
            "uid": found.uid,
            "gid": found.gid,
            "mtime": found.mtime_ns / 1e9,
            "ino": found.ino,
            "nlink": found.nlink,
        }

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        image, name, inner = self._find(path)
        if image.isdir(inner):
            paths = [os.path.join(inner, each) for each in image.listdir(inner)]
        else:
            image.stat(inner)  # which raises where there is nothing
            paths = [inner]
        return [self._info(image, name, each) if detail else name + each for each in paths]

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> io.BufferedReader:
        if mode != "rb":
            raise OSError(30, os.strerror(30), path)  # EROFS, for once the errno
        image, _, inner = self._find(path)
        return image.open(inner)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        image, _, inner = self._find(path)
        with image.open_raw(inner) as file:
            first, last, _ = slice(start, end).indices(file.size)
            return file.pread(max(0, last - first), first)

    def ukey(self, path: str) -> str:
        return str(self.info(path))

    def modified(self, path: str) -> Any:
        import datetime

        return datetime.datetime.fromtimestamp(self.info(path)["mtime"], tz=datetime.UTC)
