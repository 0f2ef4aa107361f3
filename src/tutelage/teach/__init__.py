"""Teachers, what they are asked for, and where their signals are kept."""
