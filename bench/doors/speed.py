"""`python -m bench.speed`: the door to `bench.measure.speed`."""

import sys

from bench.measure.speed import main

if __name__ == "__main__":
    sys.exit(main())
