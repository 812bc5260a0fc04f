"""`python -m jobs.overhead`: the door to `bench.measure.overhead`."""

import sys

from bench.measure.overhead import main

if __name__ == "__main__":
    sys.exit(main())
