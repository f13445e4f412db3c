"""Tests of pyerofs/source/."""
