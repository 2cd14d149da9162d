"""State machine of a sweep, and the policies that it applies. No library of the cluster is imported here."""
