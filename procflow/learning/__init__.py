"""Learning: what earlier runs teach about time and memory, and what a schedule would become with it."""
