"""`python -m bench.report_cost`: the door to `bench.measure.report_cost`."""

import sys

from bench.measure.report_cost import main

if __name__ == "__main__":
    sys.exit(main())
