"""`python -m jobs.pack`: the door to `jobs.carry.pack`."""

import sys

from jobs.carry.pack import main

if __name__ == "__main__":
    sys.exit(main())
