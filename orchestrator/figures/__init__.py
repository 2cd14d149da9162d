"""Figures of sweeps, one module for each kind of figure."""
