"""What a sweep came to, for people: tables with published numbers beside them, and how far to trust them."""
