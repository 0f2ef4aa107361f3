"""Networks cut to smaller ones that keep their weights."""
