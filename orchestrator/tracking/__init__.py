"""Logging to MLflow: the only folder that imports MLflow."""
