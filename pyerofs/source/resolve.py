"""Follow a reference to the manifest for one platform."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..config.options import ReadOptions
from ..context import NOBODY, Context
from ..errors import ImageError, NotFoundError, RegistryError
from ..oci.manifest import INDEX_DEPTH, MEDIA_TYPES, Index, Manifest, digest_as, parse, select
from ..oci.platforms import Platform
from ..oci.reference import Reference
from ..retry import patiently

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..cache.manifests import ManifestCache
    from ..registry.client import ManifestResponse, Registry


DEFAULT_TIMEOUT = ReadOptions().timeout


class Image(NamedTuple):
    """A reference, resolved: `manifest` is `digest`'s.

    `root` and `root_digest`: what the reference itself names, which is that manifest or an index on the way to it.
    `name` is for messages.
    """

    name: str
    digest: str
    manifest: Manifest
    root_digest: str
    root: Manifest | Index


def _no(_: RegistryError) -> bool:
    return False


def get_document(
    registry: Registry,
    what: str,
    context: Context = NOBODY,
    timeout: float = DEFAULT_TIMEOUT,
    kept: tuple[ManifestCache, str] | None = None,
) -> tuple[str, Manifest | Index]:
    """Return the manifest or index with this tag or digest, and its digest; it may take `timeout` seconds in all.

    `kept`: manifests of earlier times, and the image's name among them. Raises RegistryError, ImageError.
    """

    def ask(enough: Callable[[RegistryError], bool] = _no) -> ManifestResponse:
        return get_answer(registry, what, context, timeout, enough)

    if kept is not None:
        found = kept[0].get(kept[1], what, ask)
        return found.digest, parse(found.body, found.media_type)
    answer = ask()
    return digest_as(what, answer.body), parse(answer.body, answer.media_type)


def get_answer(
    registry: Registry,
    what: str,
    context: Context = NOBODY,
    timeout: float = DEFAULT_TIMEOUT,
    enough: Callable[[RegistryError], bool] = _no,
) -> ManifestResponse:
    """Return the manifest or index as it was sent, and the digest verified where `what` is one.

    After a failure that is `enough` there is no other try. Raises RegistryError, ImageError.
    """
    return patiently(
        lambda left: registry.get_manifest(what, MEDIA_TYPES, context.cancelled, left),
        context.cancelled,
        timeout,
        enough,
    )


def resolve(
    registry: Registry,
    reference: Reference,
    platform: Platform,
    context: Context = NOBODY,
    timeout: float = DEFAULT_TIMEOUT,
    manifests: ManifestCache | None = None,
) -> Image:
    """Follows a reference to the manifest for the platform, each document within `timeout` seconds.

    Raises RegistryError, ImageError.
    """
    where = (manifests, registry.giver) if manifests else None

    def get(what: str) -> tuple[str, Manifest | Index]:
        return get_document(registry, what, context, timeout, where)

    try:
        try:
            root = get(reference.manifest_reference)
        except NotFoundError as error:
            raise _explained(registry, reference, error) from None
        except RegistryError as error:
            if reference.repository not in str(error):  # what the user wrote, and what it stands for
                error.args = (f"{reference}: {error}",)
            raise
        return follow(str(reference), root, get, platform)
    except ImageError as e:
        raise ImageError(f"{reference}: {e}") from None


def _explained(registry: Registry, reference: Reference, error: NotFoundError) -> NotFoundError:
    """Return the error for what is not there, with the tag that may be meant, if the registry tells its tags."""
    if reference.digest or not reference.tag:
        return error
    from ..registry.tags import list_tags

    repository = f"{reference.registry}/{reference.repository}"
    try:
        tags = list_tags(registry)
    except RegistryError:
        return error
    from difflib import get_close_matches

    close = get_close_matches(reference.tag, tags, n=1, cutoff=0.5)
    hint = f"did you mean {repository}:{close[0]}?" if close else f"it has {len(tags)} others"
    return NotFoundError(f"{repository} has no tag {reference.tag!r}: {hint} (`pyerofs tags {repository}`)")


def follow(
    name: str,
    root: tuple[str, Manifest | Index],
    get: Callable[[str], tuple[str, Manifest | Index]],
    platform: Platform,
) -> Image:
    """From a manifest or index (and its digest) to the manifest for the platform; `get` gives others by their digests.

    Raises ImageError, and what `get` raises.
    """
    digest, document = root
    for _ in range(INDEX_DEPTH - 1):
        if isinstance(document, Index):
            digest, document = get(select(document, platform).digest)
    if isinstance(document, Manifest):
        return Image(name, digest, document, *root)
    raise ImageError(f"its indexes are nested more than {INDEX_DEPTH} deep")
