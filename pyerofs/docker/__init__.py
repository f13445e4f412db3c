"""Docker's volume plugin, which podman has too: images as volumes.

Public: plugin, volumes.
"""
