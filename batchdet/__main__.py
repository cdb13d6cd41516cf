"""`python -m batchdet`."""

import sys

from batchdet.cli.main import main

sys.exit(main())
