"""Run daemon/supervisor.py by its former name.

A daemon that was started before an upgrade still uses that name until `reattach`.
"""

from __future__ import annotations

import sys

from .daemon.supervisor import main

if __name__ == "__main__":
    sys.exit(main())
