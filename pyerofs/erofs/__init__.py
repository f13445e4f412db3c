"""How EROFS layers lie in an image: descriptors, chunk indexes, dm-verity trees, superblocks."""
