"""`python -m bench.power`: the door to `bench.measure.power`."""

import sys

from bench.measure.power import main

if __name__ == "__main__":
    sys.exit(main())
