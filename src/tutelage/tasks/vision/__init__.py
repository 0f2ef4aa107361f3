"""Images: read from any known form, checked, split, varied, and formed into batches."""
