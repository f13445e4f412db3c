"""Tables of contents of layers that are read without being unpacked: eStargz, zstd:chunked, SOCI."""
