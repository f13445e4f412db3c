"""Tar layers: decompress, read and unpack them.

Public: allowance, decompress, reader.
"""
