"""`python -m bench.export`: the door to `bench.exchange.export`."""

import sys

from bench.exchange.export import main

if __name__ == "__main__":
    sys.exit(main())
