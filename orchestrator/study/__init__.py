"""One study: its trials, its sampler and pruner, and the choice of its best trial."""
