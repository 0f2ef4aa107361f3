"""Loaders of the user's own: read as they are."""
