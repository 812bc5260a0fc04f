"""`python -m bench.tensorboard`: the door to `bench.exchange.tensorboard`."""

import sys

from bench.exchange.tensorboard import main

if __name__ == "__main__":
    sys.exit(main())
