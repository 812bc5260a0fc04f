"""`python -m bench.step_cost`: the door to `bench.measure.step_cost`."""

import sys

from bench.measure.step_cost import main

if __name__ == "__main__":
    sys.exit(main())
