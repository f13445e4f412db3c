"""Tests of pyerofs/mounting/."""
