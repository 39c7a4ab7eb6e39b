"""``python -m chronicle.cli`` is the command `chronicle`."""

import sys

from chronicle.cli.program import main

if __name__ == "__main__":
    sys.exit(main())
