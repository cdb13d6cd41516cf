"""One night of an output that is kept up to date: label, look at it, tell of it, and now and then learn from it."""
