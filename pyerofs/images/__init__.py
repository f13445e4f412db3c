"""Make, convert, copy and inspect whole images.

Public: build, convert, convert_cache, copy, documents, inspect, layer,
made_layers, progress, writer.
"""
