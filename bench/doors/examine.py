"""`python -m bench.examine`: the door to `bench.measure.examine`."""

import sys

from bench.measure.examine import main

if __name__ == "__main__":
    sys.exit(main())
