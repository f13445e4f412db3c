"""Where a layer's bytes come from.

Public: base, blobs, checked, chunked, connect, converted_cache, image_reader, index_file, kept_layers, kinds,
layer_blob, local, merged, open, plan, remade, resolve.
"""
