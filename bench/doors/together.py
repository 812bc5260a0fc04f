"""`python -m bench.together`: the door to `bench.measure.together`."""

import sys

from bench.measure.together import main

if __name__ == "__main__":
    sys.exit(main())
