"""Build-time tools: man pages, completion, and the Debian package. `make man` and `make deb` run them."""
