"""Play: a network and a search make trees."""
