"""Connect to the registry that a reference names, as options and this machine's configuration have it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..config.options import ReadOptions
from ..context import NOBODY, Context

if TYPE_CHECKING:
    from ..http.transport import Transport
    from ..oci.reference import Reference
    from ..registry.client import Registry
    from ..registry.hosts import HostConfig, Roots


_FROM_MIRRORS = frozenset(("pull", "resolve"))  # who names a mirror on the command line trusts it with tags too


def connect(
    reference: Reference, options: ReadOptions, context: Context = NOBODY, *, scopes: tuple[str, ...] = ()
) -> tuple[Registry, Transport]:
    """Return the registry of a reference; no request is made. The caller closes the transport. Raises UsageError.

    `scopes`: what its tokens must be good for, beside what it asks for.
    """
    from ..http.proxy import choose
    from ..http.transport import CONNECT_TIMEOUT, STALL_SECONDS, Transport
    from ..registry.client import Registry
    from ..registry.credentials import from_options

    credentials = from_options(options.username, options.password, options.password_file)
    config = host_config(reference.registry, options)
    transport = Transport(
        trace=context.trace,
        proxies=choose(options.proxy.reveal() if options.proxy else None, os.environ),
        # Time must be left to try it another way before a read's own time is up.
        connect_timeout=min(CONNECT_TIMEOUT, options.timeout / 3),
        stall_seconds=min(STALL_SECONDS, options.timeout / 4),
    )
    try:
        registry = Registry(
            reference.host,
            reference.repository,
            transport,
            namespace=reference.registry,
            insecure=options.insecure,
            credentials=credentials,
            config=config,
            scopes=scopes,
        )
    except BaseException:
        transport.close()
        raise
    return registry, transport


def host_config(registry: str, options: ReadOptions, roots: Roots | None = None) -> HostConfig:
    """Return this machine's configuration of a registry's hosts, with what the options add. Raises UsageError."""
    from ..registry.hosts import Host, HostConfig, certificates, check_readable, default_roots, load, parse_api_url

    roots = roots or default_roots(os.environ, os.getuid())
    config = load(registry, roots)
    named = []
    for text in options.mirrors:
        url = parse_api_url(text)
        found = certificates(url.authority, roots)
        named.append(Host(url, _FROM_MIRRORS, found.ca, found.client))
    ca = (check_readable(options.ca, "oci.ca"),) if options.ca else ()
    places = [place._replace(ca=(*place.ca, *ca)) for place in (*named, *config.mirrors, config.server)]
    return HostConfig(tuple(places[:-1]), places[-1])
