"""Evaluation: how often a player solves problems, at what cost."""
