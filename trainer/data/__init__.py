"""Tasks: the task store, the splits cut from it, decoded images and transforms."""
