"""Texts: read row by row, tokenised with a vocabulary pruned to them, and formed into batches."""
