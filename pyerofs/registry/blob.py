"""Reading ranges of one blob at a registry and its mirrors: every answer is judged before a byte of it is passed on.

OCI distribution specification, "Pulling blobs". A Blob may be used by any number of threads, and owns nothing that has
to be closed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import CorruptError, RegistryError
from ..retry import boottime
from .mirror import Mirror, ask_each
from .mirror_blob import MirrorBlob
from .range_response import Cancel, RangeResponse, Sink


class Blob:
    """`size` bytes with the digest `digest`, readable at any offset.

    `clock` counts seconds. `log` gets a line when a sink finds a mirror's bytes wrong, from its thread.

    Its reader may set, before the first read: `checked`, that its sinks find out whether bytes are in their place;
    `directory`, where bytes are held back until that is known.
    """

    def __init__(
        self,
        mirrors: Sequence[Mirror],
        digest: str,
        size: int,
        *,
        clock: Callable[[], float] = boottime,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.digest = digest
        self.size = size
        self.checked = False
        self.directory: str | None = None
        self._log = log
        self._copies = {mirror: MirrorBlob(mirror, digest, clock) for mirror in mirrors}

    def read_range(
        self,
        offset: int,
        length: int,
        sink: Sink,
        *,
        whole: Callable[[], None] | None = None,
        cancel: Cancel | None = None,
        begun: Callable[[], bool] | None = None,
    ) -> int:
        """Make one attempt at bytes [offset, offset + length).

        Gives each piece to sink(offset, piece), in order, on this thread; a sink that returns False ends it. Returns
        how many bytes the sink was given.

        A registry that ignores the range sends the whole blob: `whole` is called, then the pieces come from offset 0
        on. A mirror that fails before the first piece is followed by the next. Raises RegistryError, whose .temporary
        says whether another attempt may help; what the sink was given before an error is good. What a callback raises
        comes out unchanged, but for a CorruptError, by which it says that this mirror's bytes are wrong: that leads to
        the next mirror. `begun` tells whether anything of an answer has been used yet, for a sink that keeps pieces
        back until it has checked them; another mirror's answer then begins at `offset` again.
        """
        if not 0 <= offset < offset + length <= self.size:
            raise ValueError("the range does not lie within the blob")
        answer: RangeResponse | None = None
        given = 0

        def attempt(mirror: Mirror) -> int:
            nonlocal answer, given
            try:
                # A mirror that answers with less than the range is asked for the rest (RFC 9110, 15.3.7); if it does
                # not have that, the next one is.
                while True:
                    answer = self._answer(offset + given, length - given, sink, whole, cancel)
                    given += self._copies[mirror].attempt(answer)
                    if given >= length or not answer.is_short:
                        return given
            except RegistryError as error:
                if answer is not None and answer.begun:
                    given = 0  # whoever may start anew starts at the beginning
                if self._log and isinstance(error, CorruptError):
                    self._log(str(error))
                raise

        def cannot_go_on() -> bool:
            if answer is None or not answer.begun:
                return False  # nothing of this answer was used
            return begun() if begun else True

        return ask_each(
            tuple(self._copies),
            attempt,
            avoid=lambda mirror: self._copies[mirror].avoided(),
            begun=cannot_go_on,
        )

    def _answer(
        self, offset: int, length: int, sink: Sink, whole: Callable[[], None] | None, cancel: Cancel | None
    ) -> RangeResponse:
        return RangeResponse(self.digest, self.size, offset, length, sink, whole, cancel, self.checked, self.directory)

    def __str__(self) -> str:
        return f"blob {self.digest}"
