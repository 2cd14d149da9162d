"""Reports on sweeps: tables with published numbers beside ours, comparisons, exports and how to reproduce them."""
