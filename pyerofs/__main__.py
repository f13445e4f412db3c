import sys

from . import daemon, terminal

terminal.open_standard_files()  # before anything else is opened
daemon.start_early(sys.argv[1:])  # before the rest is imported
try:
    from .cli import main

    status = main()
except (ImportError, MemoryError) as error:
    terminal.say(f"a part of this program cannot be loaded: {error or 'out of memory'}: {terminal.LIMITS}")
    status = 2
finally:
    daemon.drop_spare()
sys.exit(status)
