"""Tests of pyerofs/config/."""
