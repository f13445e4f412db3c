"""One repository at one registry: which origin to ask, and its manifests and blobs.

OCI distribution specification, "Pull". A Registry and its blobs may be used by any number of threads; they own nothing
that has to be closed (the Transport does).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from .answer import REDIRECTS, Response, failure
from .blob import Blob
from .credentials import Lookup, lookup
from .curlerror import TransportError
from .endpoint import HOPS_MAX, Endpoint, next_hop, origins
from .errors import RegistryError
from .transport import Request, Transport
from .url import Url

MANIFEST_CAP = 4 << 20  # bytes; the most that the specification asks a registry to take
_MANIFEST_TIMEOUT = 60.0  # seconds for one exchange

# After which failures, before any answer, the next candidate is tried. Leaving https needs the stronger sign.
_TRY_NEXT = {"http": {"connect", "tls", "transfer", "protocol"}, "https": {"connect", "tls"}}


class ManifestAnswer(NamedTuple):
    """A manifest or an index as the registry sent it; nothing is verified. `media_type` is "" where it was not said."""

    body: bytes
    media_type: str


class Registry:
    """`repository` at `host` (host[:port], the one to connect to: registry-1.docker.io for Docker Hub).

    `credentials` is asked at each renewal; without it docker's and containers' files are, by way of `environ`.
    """

    def __init__(
        self,
        host: str,
        repository: str,
        transport: Transport,
        *,
        insecure: bool = False,
        credentials: Lookup | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.host = host
        self.repository = repository
        variables = os.environ if environ is None else environ
        look_up = credentials or (lambda: lookup(host, repository, variables))
        # One of these is settled on as soon as it has answered. Mirrors will be more of them.
        self._candidates = [Endpoint(origin, repository, transport, look_up) for origin in origins(host, insecure)]
        self._settled: Endpoint | None = None

    def ask(self, exchange: Callable[[Endpoint], Response]) -> tuple[Endpoint, Response]:
        """The answer of the first endpoint that speaks HTTP, and that endpoint. Raises what `exchange` raises."""
        if self._settled:
            return self._settled, exchange(self._settled)
        errors: list[TransportError] = []
        refusal: tuple[Endpoint, Response] | None = None
        last = self._candidates[-1]
        for endpoint in self._candidates:
            try:
                response = exchange(endpoint)
            except TransportError as error:
                if error.answered or error.kind not in _TRY_NEXT[endpoint.origin.url.scheme]:
                    raise
                errors.append(error)
                continue
            if response.status == 400 and endpoint is not last and endpoint.origin.url.scheme == "http":
                refusal = endpoint, response  # what a TLS server says to plain http, or simply what it says
                continue
            self._settled = endpoint
            return endpoint, response
        if refusal and errors[-1].temporary:
            return refusal
        # A certificate that is not trusted says most; that nothing listens at one of the ports says least.
        untrusted = next((error for error in errors if not error.temporary), None)
        raise untrusted or min(errors, key=lambda error: error.kind == "connect")

    def get_manifest(
        self, reference: str, accept: Sequence[str], cancel: Callable[[], bool] | None = None
    ) -> ManifestAnswer:
        """The manifest or index with this tag or digest, of the media types `accept`; not verified.

        RegistryError (NotFoundError, AuthError); one attempt, .temporary says whether another may help.
        """
        headers = (("Accept", ", ".join(accept)),)
        what = f"manifest {reference} of {self.repository}"

        def request(url: Url) -> Request:
            return Request(url, headers, cap=MANIFEST_CAP, timeout=_MANIFEST_TIMEOUT, cancel=cancel)

        endpoint, response = self.ask(lambda endpoint: endpoint.send(request(endpoint.url(f"manifests/{reference}"))))
        hops = 0
        while response.status in REDIRECTS:
            hops += 1
            if hops > HOPS_MAX:
                raise RegistryError(f"{self.host}: {what}: more than {HOPS_MAX} redirects")
            response = endpoint.send(request(next_hop(response, endpoint.origin.url)))
        if response.status != 200:
            raise failure(response, what, time.time())
        if response.truncated:
            raise RegistryError(f"{self.host}: {what} is larger than {MANIFEST_CAP >> 20} MiB")
        media_type = (response.headers.get("content-type") or "").partition(";")[0].strip().lower()
        return ManifestAnswer(response.body, media_type)

    def blob(self, digest: str, size: int) -> Blob:
        """The blob with this digest and (from its descriptor) size in bytes. No request is made."""
        return Blob(self, digest, size)
