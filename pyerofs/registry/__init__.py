"""Blobs and manifests at registries and their mirrors.

Public: client, credentials, download, hosts, range_response, tags, upload.
"""
