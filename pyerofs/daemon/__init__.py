"""The processes that keep one mount alive, and what they say to one another.

Public: control, launch, messages, record, remains, stats.
"""
