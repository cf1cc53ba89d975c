"""Devices: the mesh and what is split over it."""
