"""The sentence of the program, on one machine: list, plan, read, label, commit. Knows no Ray."""
