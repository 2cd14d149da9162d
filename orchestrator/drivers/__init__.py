"""Drivers run the trials of a sweep: in this process, on Ray, or as a simulation."""
