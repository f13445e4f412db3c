"""Take the current directory out of the module search path before the first import.

`python -m pyerofs` puts it there, in front of everything: a json.py left in a directory that all can
write to would run as the user that mounts, who is root. So this module imports nothing that could come from there, and
`__init__` imports it first. Python itself has looked for `importlib` and a few others there by then, so the command
`pyerofs` or `python -P -m pyerofs` are safer still: SECURITY.md.
"""

import sys


def leave_current_directory(package: str) -> None:
    """Take the current directory away from where modules are imported from.

    Only where this program was started by -m (argv says so until its module has been found), not where another's
    program imports us. `package`: the directory that holds ours: code comes from there in any case, and a checkout may
    have more of it.
    """
    argv = getattr(sys, "argv", [])
    if argv[:1] == ["-m"] and not sys.flags.safe_path and sys.path and sys.path[0] != package:
        del sys.path[0]
