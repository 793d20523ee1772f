"""Checking: what can only be found by importing the user's code and by asking the sources."""
