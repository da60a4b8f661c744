"""report.html: one offline page of what a run learned, pictures and data inside it."""

from saccade.evaluation.report.afterwards import report_after
from saccade.evaluation.report.findings import Findings, find
from saccade.evaluation.report.page import page, write_report

__all__ = ["Findings", "find", "page", "report_after", "write_report"]
