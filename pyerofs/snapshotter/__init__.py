"""containerd's snapshotter: images as lazy mounts, all others as ordinary overlays.

Public: check, configuration, pull, serve.
"""
