"""`python -m condconv`, the same as the command `condconv`; what `accelerate launch -m` starts."""

import sys

from condconv.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
