"""``python -m medmdm``: see :mod:`medmdm.cli`."""

from __future__ import annotations

import sys

from medmdm.cli import main

if __name__ == "__main__":
    sys.exit(main())
