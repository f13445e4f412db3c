"""The tests: a folder for each of the package's, and a few beside them."""
