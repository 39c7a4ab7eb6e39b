"""``python -m chronicle`` is the command `chronicle`, where that is not on the path."""

import sys

from chronicle.cli.program import main

if __name__ == "__main__":
    sys.exit(main())
