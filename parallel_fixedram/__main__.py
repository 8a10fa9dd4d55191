"""``python -m parallel_fixedram``."""

import sys

from parallel_fixedram.cli.main import main

sys.exit(main())
