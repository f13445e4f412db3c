import sys

from .cli import terminal
from .daemon import launch

terminal.open_standard_files()  # before anything else is opened
launch.start_early(sys.argv[1:])  # before the rest is imported
try:
    from .cli.main import main

    status = main()
except (ImportError, MemoryError) as error:
    terminal.say(f"a part of this program cannot be loaded: {error or 'out of memory'}: {terminal.LIMITS}")
    status = 2
finally:
    launch.drop_spare()
sys.exit(status)
