"""Data of others: readers of their files, and this project's data for seqio."""
