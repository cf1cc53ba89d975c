"""Bounds of lines, for tests of what goes past them."""

from qstar_jax.config import TextConfig


def bounds(
  max_prompt_tokens: int, max_steps: int, max_step_tokens: int
) -> TextConfig:
  """Of the lines of a network: P, D and T."""
  return TextConfig(
    max_prompt_tokens=max_prompt_tokens,
    max_steps=max_steps,
    max_step_tokens=max_step_tokens,
  )
