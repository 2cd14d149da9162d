"""Methods: what each adds to the frozen network, and what of it learns. A file for each idea."""
