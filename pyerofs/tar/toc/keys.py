"""The annotations of a layer's descriptor by which it has a table of contents, and the files of the format's own."""

STARGZ_DIGEST = "containerd.io/snapshot/stargz/toc.digest"  # of the plain JSON
CHUNKED = "io.github.containers.zstd-chunked."
OLD_CHUNKED = "io.containers.zstd-chunked."  # what both projects began with, and stargz-snapshotter kept
# Put there by pyerofs itself (source/soci_index.py): the zTOC that an index has for the layer.
SOCI_ZTOC = "org.pyerofs.soci.ztoc"
CHECKSUM, POSITION = "manifest-checksum", "manifest-position"  # behind one of these two

LANDMARK = b".prefetch.landmark"
STARGZ_NAMES = frozenset((LANDMARK, b".no.prefetch.landmark", b"stargz.index.json"))
