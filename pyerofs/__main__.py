import sys

from .cli.start import main

sys.exit(main())
