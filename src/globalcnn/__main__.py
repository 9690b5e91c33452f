"""`python -m globalcnn` is the command `globalcnn` (torchrun needs a module)."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
