"""What finished runs have shown: a table for the terminal and one self-contained HTML page."""

from ftjax.report.page import html, write_report
from ftjax.report.runs import RunRecord, read_run
from ftjax.report.tables import table

__all__ = ["RunRecord", "html", "read_run", "table", "write_report"]
