"""``python -m simmim``."""

import sys

from simmim.cli import main

sys.exit(main())
