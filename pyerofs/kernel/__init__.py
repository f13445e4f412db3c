"""NBD, loop and dm-verity devices, mount(2) and overlayfs.

Public: dmverity, loop, mountpoint, nbd, nbd_node, overlay, reconnect.
"""
