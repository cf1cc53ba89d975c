"""Distils search back into the network."""
