"""Tests of pyerofs/grpc/."""
