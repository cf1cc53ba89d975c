"""What decoding asks at every token: which streams go on, and with what."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax.numpy as jnp

from qstar_jax.model import sampling


class Choice(NamedTuple):
  """The next token of each of R = X * A streams.

  Attributes:
    token: int32 [R], read where what the stream continues is open.
    log_prob: float32 [R], nats, of the token at temperature 1.
    parent: int32 [X, A], which stream of its leaf each one continues; -1 for
      none, it is empty. None if each continues itself.
  """

  token: chex.Array
  log_prob: chex.Array
  parent: chex.Array | None = None


class Proposal(NamedTuple):
  """How the A candidates of a leaf are proposed. Pure functions, traced.

  `state` is a pytree of the proposal's own, from token to token.

  Attributes:
    num_uniforms: U, random numbers for every token of every stream.
    begin: (uniform_XAU, width_X) -> (state, is_open_XA), given the numbers of
      the first token and how many candidates each leaf wants.
    choose: (state, logits_RV, is_open_R, uniform_XAU, width_X) ->
      (state, Choice).
    log_prob: state -> float32 [X, A], nats, of each candidate: of one draw
      where draws are independent, else of being among the A.
  """

  num_uniforms: int
  begin: Callable[[chex.Array, chex.Array], tuple[Any, chex.Array]]
  choose: Callable[..., tuple[Any, Choice]]
  log_prob: Callable[[Any], chex.Array]


def independent(temperature: float, min_p: float = 0.0) -> Proposal:
  """Each stream draws its own tokens: candidates with replacement.

  Args:
    temperature: static; 0 is greedy, with proposal log-probability 0.
    min_p: static, see `sampling.drop_unlikely`.

  Returns:
    The proposal; its state is the steps' log-probability so far, [X, A].
  """

  def begin(uniform_XAU, width_X):
    x, a, _ = uniform_XAU.shape
    is_open_XA = jnp.arange(a)[None] < width_X[:, None]
    return jnp.zeros((x, a), jnp.float32), is_open_XA

  def choose(log_prob_XA, logits_RV, is_open_R, uniform_XAU, width_X):
    del width_X
    sampled = sampling.sample_tokens(
      logits_RV, uniform_XAU[..., 0].reshape(-1), temperature, min_p
    )
    of_token_R = jnp.where(is_open_R, sampled.proposal_log_prob, 0.0)
    choice = Choice(sampled.token, sampled.log_prob)
    return log_prob_XA + of_token_R.reshape(log_prob_XA.shape), choice

  return Proposal(1, begin, choose, lambda log_prob_XA: log_prob_XA)
