"""An additional image store of lazy mounts, for podman, buildah and CRI-O: storage.conf(5), additionalimagestores.

Public: store.
"""
