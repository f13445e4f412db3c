"""containerd's snapshotter: images as lazy mounts, all others as ordinary overlays.

Public: check, config_file, configuration, pull, serve.
"""
