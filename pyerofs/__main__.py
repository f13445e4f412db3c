import sys

from . import daemon

daemon.start_early(sys.argv[1:])  # before the rest is imported
try:
    from .cli import main

    status = main()
finally:
    daemon.drop_spare()
sys.exit(status)
