"""A source with its store, its cache, its fetch threads and its NBD server.

Public: base, digest_check, file, metrics, serve, server.
"""
