"""Tests of pyerofs/daemon/."""
