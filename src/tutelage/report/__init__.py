"""The report: run.json, plan.json and proof.json as one self-contained HTML file."""

from tutelage.report.build import build_report

__all__ = ["build_report"]
