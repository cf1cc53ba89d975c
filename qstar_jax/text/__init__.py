"""Vocabularies, and the segmentation of lines into steps."""
