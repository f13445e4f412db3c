"""Tests of pyerofs/cache/."""
