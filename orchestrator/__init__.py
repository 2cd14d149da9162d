"""Decides which training runs there are, where they happen and what is remembered."""
