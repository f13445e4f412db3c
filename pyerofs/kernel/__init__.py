"""NBD, loop and dm-verity devices, mount(2) and overlayfs.

Public: dmverity, loop, mountpoint, named_source, nbd, nbd_node, overlay, reconnect.
"""
