"""Batched search over reasoning steps. Given functions, never a model."""
