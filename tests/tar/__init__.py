"""Tests of pyerofs/tar/."""
