import sys

from .cli import terminal
from .daemon import launch
from .errors import unexpected

terminal.open_standard_files()  # before anything else is opened
launch.start_early(sys.argv[1:])  # before the rest is imported
try:
    from .cli.main import main

    status = main()
except (ImportError, MemoryError) as error:
    problem = unexpected(error)
    terminal.say_error(problem, 0)
    status = problem.status
finally:
    launch.drop_spare()
sys.exit(status)
