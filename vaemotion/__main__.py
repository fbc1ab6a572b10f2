"""``python -m vaemotion``: the command line."""

import sys

from vaemotion.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
