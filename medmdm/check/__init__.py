"""Checks of a data list and its files, before anyone trains on them.

:func:`medmdm.check.data_list.check` decodes everything; :func:`medmdm.check.sharing.quick_check` is what training does
at its start.
"""

from medmdm.check.data_list import check
from medmdm.check.sharing import quick_check

__all__ = ["check", "quick_check"]
