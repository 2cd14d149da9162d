"""Decides which configs are trained, where they run, and what is remembered."""
