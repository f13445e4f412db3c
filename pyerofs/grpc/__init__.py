"""gRPC over Unix sockets: a small server and a client on h2, and protobuf by hand. It knows no service.

Public: client, protobuf, server, status.
"""
