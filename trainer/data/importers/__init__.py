"""Imports of tasks into the task store, from every form in which researchers hold the data sets."""
