"""qstar_jax: search over reasoning steps, distilled into one joint network."""

__version__ = "0.1.0"
