"""Tests of pyerofs/http/."""
