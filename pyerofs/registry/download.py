"""A whole blob into a file: resumed where it broke off, and looked through as it comes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import BinaryIO

from ..errors import ImageError, RegistryError
from ..retry import delay, pause
from .blob import Blob

ATTEMPTS = 8  # failures in a row between which nothing came


def download(
    blob: Blob,
    file: BinaryIO,
    progress: Callable[[int], None] = lambda done: None,
    cancel: Callable[[], bool] | None = None,
) -> None:
    """Write the blob to `file`, from its position on, on the calling thread.

    `progress` gets the bytes so far. Raises RegistryError, and ImageError where what came has another digest. OSError
    of the file comes out unchanged.
    """
    algorithm, _, expected = blob.digest.partition(":")
    hasher = hashlib.new(algorithm)
    done = failures = 0
    blob.checked = True  # by the digest of all of it

    def sink(offset: int, piece: bytes) -> bool:
        nonlocal done
        fresh = piece[done - offset :]  # a registry without ranges begins at 0 again
        if fresh:
            file.write(fresh)
            hasher.update(fresh)
            done += len(fresh)
            progress(done)
        return True

    while done < blob.size:
        before = done
        try:
            blob.read_range(done, blob.size - done, sink, cancel=cancel)
        except RegistryError as error:
            failures = 0 if done > before else failures + 1
            if not error.temporary or failures >= ATTEMPTS:
                raise
            pause(delay(failures, error.retry_after), cancel or (lambda: False))
    if hasher.hexdigest() != expected:
        raise ImageError(f"{blob} came with another content: it has the digest {algorithm}:{hasher.hexdigest()}")
