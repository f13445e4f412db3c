"""Tests of pyerofs/export/."""
