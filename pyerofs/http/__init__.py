"""One HTTP exchange over libcurl. Knows no registry."""
