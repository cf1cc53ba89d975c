"""A durable store of records: TFDS datasets of ArrayRecord shards. No JAX."""
