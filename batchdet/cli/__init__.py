"""One door for people: arguments in, exit codes out."""
