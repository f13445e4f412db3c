"""This node's cache as a read-only mirror for its neighbours.

Public: mirror_server, neighbours.
"""
