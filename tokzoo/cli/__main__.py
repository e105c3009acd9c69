"""`python -m tokzoo.cli`, for machines where the script is not on the path."""

import sys

from tokzoo.cli.main import main

sys.exit(main())
