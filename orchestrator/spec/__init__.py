"""The spec: one validated YAML file, and the plan of studies that follows from it."""
