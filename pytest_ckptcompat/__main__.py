"""``python -m pytest_ckptcompat``: the ``ckptcompat`` command."""

import sys

from .cli import main

sys.exit(main())
