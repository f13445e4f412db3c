"""Tests of pyerofs/cli/."""
