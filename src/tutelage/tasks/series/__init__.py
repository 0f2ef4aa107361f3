"""Series: read from files and tables, made of one length, varied, and formed into batches."""
