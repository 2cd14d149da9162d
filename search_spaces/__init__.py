"""Specs that ship: one YAML file an experiment."""
