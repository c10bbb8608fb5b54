"""Reports of evaluations: tables, figures, and one HTML page that holds everything.

They are made of files alone: what an evaluation wrote (``evaluation.json``, masks), the data set's images and labels,
or, where the masks are gone, ``per_case.csv``; a workflow that still has the arrays in memory gives those instead.
"""

from medmdm.reports.case_files import CaseArrays
from medmdm.reports.comparison import write_comparison
from medmdm.reports.report import Report, write_report
from medmdm.reports.scoring import Scores

__all__ = ["CaseArrays", "Report", "Scores", "write_comparison", "write_report"]
