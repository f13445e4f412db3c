"""Every exception that pyerofs raises on purpose, and the exit status that each stands for.

    PyerofsError            status 32, a mount failure
     +- InternalError       status 4: a bug of ours
     +- UsageError          status 1: the invocation is wrong (an option, a reference, a permission)
     +- UnavailableError       status 2: this system cannot do it (no module, no free device, no helper program)
     +- ImageError          the image, its manifest or its layer cannot be used
     +- MountError        the kernel refused to attach, to mount or to unmount
     +- RegistryError       the registry or the way to it failed; .temporary says whether another try may help
         +- AuthError       401 or 403 after everything that could be tried
         +- NotFoundError   404: no such repository, tag or blob
         +- CorruptError    what came is not what its digest says; another mirror may have better
     +- SpoiledError        all that a source has given so far is worth nothing

The status is mount(8)'s: 1 invocation or permissions, 2 system error, 4 internal bug, 8 interrupt, 32 mount failure.
A message is one line, names the thing and the way out, and never holds a secret: the code that raises it redacts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


LIMITS = "this process may use less than it needs (ulimit -v and -u, or its cgroup's limits)"


class PyerofsError(Exception):
    """Base of all; its text is the whole message for the user."""

    status = 32


class UsageError(PyerofsError):
    status = 1


class UnavailableError(PyerofsError):
    status = 2


def cannot(what: str, error: OSError, hint: str = "") -> UnavailableError:
    """Return the error that says what could not be done, why, and with which file; `hint`: the way out."""
    where = f" ({error.filename})" if error.filename else ""
    return UnavailableError(f"cannot {what}: {error.strerror or error}{hint}{where}")


class InternalError(PyerofsError):
    """A bug of ours: one line that asks for a report. `trace`: the traceback, which goes to the log."""

    status = 4
    trace = ""

    @classmethod
    def of(cls, error: BaseException) -> InternalError:
        """Return the error for an unexpected exception, with the place where it was raised."""
        import os
        import traceback

        frames = traceback.extract_tb(error.__traceback__)
        where = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
        text = " ".join(str(error).split())[:200]
        what = type(error).__name__ + (f": {text}" if text else "")
        from . import __version__

        bug = cls(f"internal error{where} ({what}): this is a bug in pyerofs {__version__}, please report it")
        bug.trace = "".join(traceback.format_exception(error))
        return bug


def unexpected(error: BaseException) -> PyerofsError:
    """Return the error for an unexpected exception.

    It is what this machine lacks (memory, threads, a part of this program), or else a bug of ours.
    """
    if isinstance(error, PyerofsError):
        return error
    if isinstance(error, MemoryError):
        return UnavailableError(f"out of memory: {LIMITS}")
    if isinstance(error, ImportError):  # also where there is no memory for a library
        return UnavailableError(f"cannot load a part of this program: {error}")
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):  # CPython has no type for it
        return UnavailableError(f"cannot start a thread: {LIMITS}")
    return InternalError.of(error)


class ImageError(PyerofsError):
    pass


class MountError(PyerofsError):
    pass


class RegistryError(PyerofsError):
    """`temporary`: a later attempt may succeed. `retry_after`: seconds for which the server wants to be left alone."""

    def __init__(self, message: str, *, temporary: bool = False, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.temporary = temporary
        self.retry_after = retry_after


class AuthError(RegistryError):
    pass


class NotFoundError(RegistryError):
    pass


class CorruptError(RegistryError):
    """Bytes that are not what their hash says. Not temporary: their place of origin is avoided for a while.

    `end`: where, in the source, what is corrupt ends; what lies behind may be good. None: not known.
    """

    def __init__(self, message: str, end: int | None = None) -> None:
        super().__init__(message)
        self.end = end


class SpoiledError(ImageError):
    """Also what a source has given before this is wrong, and is to be forgotten wherever it is."""


def to_json(error: PyerofsError) -> dict[str, object]:
    """Return what another process needs to raise the same error: text, status, class, and its attributes."""
    values = {name: getattr(error, name) for name in _ATTRIBUTES if hasattr(error, name)}
    return {"error": str(error), "status": error.status, "class": type(error).__name__, **values}


def from_json(values: Mapping[str, object]) -> PyerofsError:
    """Return the error that to_json() was given; of a class that is not known here, a PyerofsError."""
    kind = _classes(PyerofsError).get(str(values.get("class")), PyerofsError)
    error = kind(str(values["error"]))
    for name in (*_ATTRIBUTES, "status"):
        if name in values:
            setattr(error, name, values[name])
    return error


_ATTRIBUTES = ("temporary", "retry_after", "end", "trace")


def _classes(base: type[PyerofsError]) -> dict[str, type[PyerofsError]]:
    found = {base.__name__: base}
    for each in base.__subclasses__():
        if each.__module__ == __name__:  # others may want more than a text
            found.update(_classes(each))
    return found
