"""daemon/worker.py by its former name, which a daemon that was started before an upgrade still uses until
`reattach`."""

from __future__ import annotations

import sys

from .daemon.worker import main

if __name__ == "__main__":
    sys.exit(main())
