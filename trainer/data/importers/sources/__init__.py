"""Importers, one file a family of data sets."""
