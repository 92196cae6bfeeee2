"""Starts the fuzz: python -m testbed.fuzz

The program is in main.py. The processes that it starts import their function by its module's name,
and cannot import it from a `__main__` inside a package.
"""

import sys

from .main import main

if __name__ == "__main__":
    sys.exit(main())
