"""From every source that researchers hold to the task store: one file a family of sources."""
