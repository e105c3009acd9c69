"""`python -m tokzoo`: the command line, where its script is not on the path."""

import sys

from tokzoo.cli.main import main

if __name__ == "__main__":
  sys.exit(main())
