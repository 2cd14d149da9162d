"""Where a home, its databases and its servers are, and on which software results were made."""
