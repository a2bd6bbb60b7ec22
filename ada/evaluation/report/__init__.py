"""What a reader gets: a table, figures, an image grid, a page."""

from ada.evaluation.report.outputs import Pictures, write_reports
from ada.evaluation.report.table import terminal_table

__all__ = ["Pictures", "terminal_table", "write_reports"]
