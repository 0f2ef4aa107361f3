"""Turning a student into the file that ships, and proving that the file says the same."""
