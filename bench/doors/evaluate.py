"""`python -m bench.evaluate`: the door to `bench.training.evaluate`."""

import sys

from bench.training.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
