"""Tests of pyerofs/kernel/."""
