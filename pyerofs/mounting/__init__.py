"""What callers do with mounts: the door of every front end.

It is not called `mount`: once imported, a package of that name would take the place of pyerofs.mount().
"""
