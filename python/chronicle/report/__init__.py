"""Reports: what was measured, as one page that needs nothing else.

A `Run` holds what was measured; `page` makes an HTML page of it, with charts as inline SVG and the
run itself inside, so that a later report can be compared with it (`read_run`). Nothing in the page
is fetched from anywhere, and it has no scripts.
"""

from chronicle.report.document import (
    Figure,
    Mark,
    Run,
    Series,
    Table,
    Timeline,
    Window,
    bucket_counts,
    read_run,
    timeline_of,
)
from chronicle.report.page import page

__all__ = [
    "Figure",
    "Mark",
    "Run",
    "Series",
    "Table",
    "Timeline",
    "Window",
    "bucket_counts",
    "page",
    "read_run",
    "timeline_of",
]
