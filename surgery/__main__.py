"""`python -m surgery`."""

import sys

from surgery.cli import main

sys.exit(main())
