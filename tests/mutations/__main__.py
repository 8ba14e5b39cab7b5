"""The command `python -m tests.mutations`, see `tests.mutations.run`."""

import sys

from tests.mutations.run import main

sys.exit(main())
