"""``python -m laraman`` is the command ``laraman``."""

import sys

from laraman.cli import main

if __name__ == "__main__":
    sys.exit(main())
