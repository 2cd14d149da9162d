"""Files on a local disk or in a bucket."""
