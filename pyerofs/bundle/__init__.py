"""OCI runtime bundles: what runc starts, with an image mounted lazily as its root.

Public: bundle.
"""
