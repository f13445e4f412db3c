"""Tests of pyerofs/erofs/."""
