"""What a sweep came to, for people: tables with published numbers beside them, and how far to trust them."""

from orchestrator.report.board import board_of
from orchestrator.report.contents import contents
from orchestrator.report.render import FORMATS, csv_of, print_blocks

__all__ = ["FORMATS", "board_of", "contents", "csv_of", "print_blocks"]
