"""`python -m bench.gpu`: the door to `bench.measure.gpu.program`."""

import sys

from bench.measure.gpu.program import main

if __name__ == "__main__":
    sys.exit(main())
