"""A CSI driver, its Identity and Node services: images as read-only volumes of Kubernetes' pods.

Public: driver, node.
"""
