"""Where files and databases are, whether servers answer, and which software and machine made a result."""
