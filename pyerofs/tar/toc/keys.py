"""The annotations of a layer's descriptor by which it has a table of contents."""

STARGZ_DIGEST = "containerd.io/snapshot/stargz/toc.digest"  # of the plain JSON
CHUNKED = "io.github.containers.zstd-chunked."
OLD_CHUNKED = "io.containers.zstd-chunked."  # what both projects began with, and stargz-snapshotter kept
CHECKSUM, POSITION = "manifest-checksum", "manifest-position"  # behind one of these two
