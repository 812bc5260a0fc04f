"""`python -m bench.acceptance`: the door to `bench.measure.acceptance`."""

import sys

from bench.measure.acceptance import main

if __name__ == "__main__":
    sys.exit(main())
