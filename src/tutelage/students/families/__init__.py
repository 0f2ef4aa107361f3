"""The families of students: knobs, the network that they describe, structures to try."""
