"""Tests of pyerofs/snapshotter/."""
