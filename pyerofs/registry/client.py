"""One repository at one registry and its mirrors: its manifests and blobs.

OCI distribution specification, "Pull". A Registry and its blobs may be used by any number of threads; they own nothing
that has to be closed (the Transport does).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ..errors import AuthError, ImageError, NotFoundError, RegistryError, UsageError
from ..http.answer import REDIRECTS, Response, failure
from ..http.request import Request
from ..http.transport import Transport
from ..http.url import Url
from ..oci.manifest import OCI_INDEX, verify_digest
from ..oci.reference import is_digest
from ..oci.soci import referrers_tag
from .blob import Blob
from .credentials import Lookup
from .endpoint import Endpoint
from .hosts import HostConfig
from .mirror import Mirror, ask_each, make_mirrors
from .redirect import HOPS_MAX, next_hop

MANIFEST_CAP = 4 << 20  # bytes; the most that the specification asks a registry to take
_MANIFEST_TIMEOUT = 60.0  # seconds for one exchange


class ManifestResponse(NamedTuple):
    """A manifest or an index as the registry sent it; nothing is verified. `media_type` is "" where it was not said."""

    body: bytes
    media_type: str


class Registry:
    """`repository` at `host` (host[:port], the one to connect to: registry-1.docker.io for Docker Hub).

    `namespace`: how images call that host, if that differs. `credentials` is asked at each renewal; without it docker's
    and containers' files are, by way of `environ`. `config`: its mirrors. `scopes`: what its tokens must be
    good for, beside what it asks for. Raises UsageError.
    """

    def __init__(
        self,
        host: str,
        repository: str,
        transport: Transport,
        *,
        namespace: str | None = None,
        insecure: bool = False,
        credentials: Lookup | None = None,
        environ: Mapping[str, str] | None = None,
        config: HostConfig | None = None,
        scopes: tuple[str, ...] = (),
    ) -> None:
        self.host = host
        self.repository = repository
        self._name = f"{namespace or host}/{repository}"
        self._insecure = insecure
        self.mirrors = make_mirrors(
            host,
            namespace or host,
            repository,
            transport,
            config or HostConfig(),
            insecure=insecure,
            credentials=credentials,
            environ=os.environ if environ is None else environ,
            scopes=scopes,
        )

    @property
    def giver(self) -> str:
        """The giver of its bytes and tags, as text: all hosts that may be asked, and how."""
        hosts = [mirror.name for mirror in self.mirrors]
        ways = ["insecure"] * self._insecure + [f"at {', '.join(hosts)}"] * (hosts != [self.host])
        return f"{self._name} ({'; '.join(ways)})" if ways else self._name

    def capable(self, capability: str) -> list[Mirror]:
        """Those that are trusted with "pull" or "resolve". Raises UsageError where there is none."""
        found = [mirror for mirror in self.mirrors if capability in mirror.capabilities]
        if not found:
            raise UsageError(f"{self.host}: by hosts.toml no host has the capability {capability!r}")
        return found

    def get_manifest(
        self,
        reference: str,
        accept: Sequence[str],
        cancel: Callable[[], bool] | None = None,
        timeout: float = _MANIFEST_TIMEOUT,
    ) -> ManifestResponse:
        """Return the manifest or index with this tag or digest, of the media types `accept`.

        One with a digest is verified.

        One attempt at each mirror, of `timeout` seconds. Raises RegistryError (NotFoundError, AuthError), whose
        .temporary says whether another attempt may help, and ImageError where what came has another digest.
        """
        by_digest = is_digest(reference)
        wrong: list[ImageError] = []

        def attempt(mirror: Mirror) -> ManifestResponse:
            what = f"manifest {reference} of {self.repository}"
            answer = self._get(mirror, f"manifests/{reference}", what, accept, cancel, min(timeout, _MANIFEST_TIMEOUT))
            if by_digest:
                try:
                    verify_digest(answer.body, reference)
                except ImageError as error:
                    wrong.append(error)
                    raise RegistryError(f"{mirror.name}: {error}") from None
            return answer

        try:
            return ask_each(self.capable("pull" if by_digest else "resolve"), attempt, last_word=True)
        except RegistryError as error:
            if wrong and not error.temporary:
                raise wrong[-1] from None
            raise

    def get_referrers(
        self, digest: str, cancel: Callable[[], bool] | None = None, timeout: float = _MANIFEST_TIMEOUT
    ) -> ManifestResponse | None:
        """Return the list, an index, of what refers to a manifest; None where nothing does.

        Whoever may push can add to it. A registry without the referrers API has it under a tag. One attempt at each
        mirror, as get_manifest(). Raises RegistryError.
        """

        def attempt(mirror: Mirror) -> ManifestResponse:
            what = f"referrers of {digest} of {self.repository}"
            return self._get(mirror, f"referrers/{digest}", what, (OCI_INDEX,), cancel, min(timeout, _MANIFEST_TIMEOUT))

        try:
            return ask_each(self.capable("resolve"), attempt, last_word=True)
        except AuthError:
            raise
        except RegistryError as error:
            if error.temporary:
                raise
        try:
            return self.get_manifest(referrers_tag(digest), (OCI_INDEX,), cancel, timeout)
        except NotFoundError:
            return None

    def _get(
        self,
        mirror: Mirror,
        path: str,
        what: str,
        accept: Sequence[str],
        cancel: Callable[[], bool] | None,
        timeout: float,
    ) -> ManifestResponse:
        headers = (("Accept", ", ".join(accept)),)
        note, fresh = mirror.note, mirror.health.failures > 0

        def request(url: Url) -> Request:
            return Request(url, headers, cap=MANIFEST_CAP, timeout=timeout, cancel=cancel, note=note, fresh=fresh)

        def exchange(endpoint: Endpoint) -> Response:
            return endpoint.send(request(endpoint.url(path)))

        endpoint, response = mirror.ask(exchange)
        hops = 0
        while response.status in REDIRECTS:
            hops += 1
            if hops > HOPS_MAX:
                raise RegistryError(f"{mirror.name}: {what}: more than {HOPS_MAX} redirects")
            response = endpoint.send(request(next_hop(response, endpoint.origin.url)))
        if response.status != 200:
            raise failure(response, what, time.time())
        if response.truncated:
            raise RegistryError(f"{mirror.name}: {what} is larger than {MANIFEST_CAP >> 20} MiB")
        media_type = (response.headers.get("content-type") or "").partition(";")[0].strip().lower()
        return ManifestResponse(response.body, media_type)

    def blob(self, digest: str, size: int, log: Callable[[str], None] | None = None) -> Blob:
        """Return the blob with this digest and (from its descriptor) size in bytes. No request is made.

        `log` gets a line for each mirror whose bytes turn out to be wrong, from any thread.
        """
        return Blob(self.capable("pull"), digest, size, log=log)
