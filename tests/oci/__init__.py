"""Tests of pyerofs/oci/."""
