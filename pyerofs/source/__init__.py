"""Where a layer's bytes come from.

Public: base, blobs, cached_images, checked, chunked, connect, converted_cache, image_reader, index_file, kept_layers,
kinds, layer_blob, local, map_file, merged, open, original_blobs, plan, remade, resolve, soci_index, toc_ranges,
unit_reader.
"""
