"""What a reader gets: a table, figures, an image grid, a page."""

from ada.evaluation.report.outputs import write_reports
from ada.evaluation.report.table import terminal_table

__all__ = ["terminal_table", "write_reports"]
