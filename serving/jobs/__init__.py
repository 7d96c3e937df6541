"""Jobs that are never lost: what one is, where it is kept, who works on it."""
