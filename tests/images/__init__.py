"""Tests of pyerofs/images/."""
