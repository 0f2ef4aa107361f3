"""Audits of an artifact; each takes decisions or a callable, never a network."""
