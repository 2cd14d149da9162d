"""Plots of a finished trial."""
