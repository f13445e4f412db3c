"""Make, convert, copy and inspect whole images.

Public: build, compare, convert, convert_cache, copy, copy_out, documents,
image_files, index_image, inspect, layer, made_layers, progress, tags, tar_out, writer.
"""
