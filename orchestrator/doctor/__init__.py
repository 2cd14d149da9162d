"""Checks that a sweep can run: the home, the servers and each machine of the cluster."""
