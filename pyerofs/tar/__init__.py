"""Tar layers: decompress and read them, or their tables of contents.

Public: allowance, decompress, reader, toc.formats, toc.keys, toc.model, toc.span, toc.spans, toc.ztoc, toc.ztoc_writer.
"""
