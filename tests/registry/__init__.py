"""Tests of pyerofs/registry/."""
