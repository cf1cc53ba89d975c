"""A distinct steps per leaf, sampled without replacement: stochastic beam.

Kool, van Hoof, Welling 2019, "Stochastic Beams and Where to Find Them". Give
every whole step the perturbed log-probability G = phi + Gumbel noise, phi being
its log-probability: the A largest are a sample without replacement. The largest
G below a prefix is itself Gumbel noise around the prefix's phi, so a beam that
keeps the A prefixes of largest G at every token finds them.

The paper draws the G of all V extensions of a prefix and shifts them so that
their maximum is the prefix's own. Here they are drawn from the largest down, as
far as anyone asks (Maddison, Tarlow, Minka 2014, "A* Sampling"), which is the
same distribution for a V-th of the random numbers. In terms of exp(-G) it is a
race: an extension arrives at rate exp(phi), the first of several at the sum of
their rates, as each in proportion to its rate, and the next after another
exponential waiting time at the rate that is left.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from qstar_jax.model import sampling
from qstar_jax.model.proposal import Choice, Proposal


class Beam(NamedTuple):
  """The beams of X leaves between two tokens.

  Attributes:
    log_prob: float32 [X, A], phi of the tokens so far, nats, as tempered.
    perturbed: float32 [X, A], G, from the largest down; -inf where there is no
      stream. At temperature 0, phi.
    left_out: float32 [X], kappa, the largest G that was left out so far; -inf
      for none. Each left-out prefix stands for the largest of its steps, so in
      the end this is the (A + 1)-th largest of all steps.
  """

  log_prob: chex.Array
  perturbed: chex.Array
  left_out: chex.Array


class Extensions(NamedTuple):
  """The A best extensions of the streams of each leaf, the best first.

  An ended stream extends to itself alone, and competes as it is.

  Attributes:
    parent: int32 [X, A].
    token: int32 [X, A]; 0 behind an ended stream.
    perturbed: float32 [X, A + 1], one more than there are; -inf where there are
      fewer.
  """

  parent: chex.Array
  token: chex.Array
  perturbed: chex.Array


def log_inclusion(log_prob: chex.Array, left_out: chex.Array) -> chex.Array:
  """Log-probability that a step's G is above the largest that was left out.

  Args:
    log_prob: phi, nats.
    left_out: kappa; -inf if nothing was left out.

  Returns:
    log(1 - exp(-exp(phi - kappa))), of the common shape.
  """
  return jnp.log(-jnp.expm1(-jnp.exp(log_prob - left_out)))


def race(
  log_prob_XAV: chex.Array,
  is_open_XA: chex.Array,
  beam: Beam,
  uniform_XAU: chex.Array,
) -> Extensions:
  """Draws the extensions of largest G, given that of the streams.

  Args:
    log_prob_XAV: of every next token, nats, as tempered.
    is_open_XA: bool, the stream has not ended.
    beam: the streams.
    uniform_XAU: in [0, 1): for the i-th extension of a leaf, [i, 0] is for the
      token and [i, 1] for the time until its stream's next.

  Returns:
    The extensions.
  """
  leaf_X = jnp.arange(log_prob_XAV.shape[0])
  token_1V = jnp.arange(log_prob_XAV.shape[2])[None]
  mass_XAV = jnp.where(is_open_XA[..., None], jnp.exp(log_prob_XAV), 0.0)
  log_wait_XA = jnp.log(-jnp.log1p(-uniform_XAU[..., 1]))

  def draw(carry, noise):
    # perturbed_XA: of the best extension that each stream has left.
    mass_XAV, perturbed_XA = carry
    uniform_X, log_wait_X = noise
    parent_X = jnp.argmax(perturbed_XA, axis=1).astype(jnp.int32)
    best_X = jnp.max(perturbed_XA, axis=1)
    mass_XV = mass_XAV[leaf_X, parent_X]
    token_X = sampling.inverse_cdf(mass_XV, uniform_X)
    left_X = jnp.sum(
      jnp.where(token_1V == token_X[:, None], 0, mass_XV), axis=1
    )
    log_rate_X = beam.log_prob[leaf_X, parent_X] + jnp.log(left_X)
    next_X = -jnp.logaddexp(-best_X, log_wait_X - log_rate_X)
    next_X = jnp.where(left_X > 0, next_X, -jnp.inf)
    carry = (
      mass_XAV.at[leaf_X, parent_X, token_X].set(0.0),
      perturbed_XA.at[leaf_X, parent_X].set(next_X),
    )
    return carry, (parent_X, token_X, best_X)

  (_, rest_XA), extensions = jax.lax.scan(
    draw, (mass_XAV, beam.perturbed), (uniform_XAU[..., 0].T, log_wait_XA.T)
  )
  parent_XA, token_XA, perturbed_XA = (y_AX.T for y_AX in extensions)
  rest_X1 = jnp.max(rest_XA, axis=1, keepdims=True)
  return Extensions(
    parent_XA, token_XA, jnp.concatenate([perturbed_XA, rest_X1], axis=1)
  )


def most_likely(
  log_prob_XAV: chex.Array, is_open_XA: chex.Array, beam: Beam
) -> Extensions:
  """The extensions of largest phi: beam search, without noise.

  Args:
    log_prob_XAV: of every next token, nats.
    is_open_XA: bool, the stream has not ended.
    beam: the streams.

  Returns:
    The extensions.
  """
  x, a, v = log_prob_XAV.shape
  itself_11V = jnp.where(jnp.arange(v) == 0, 0.0, -jnp.inf)[None, None]
  of_token_XAV = jnp.where(is_open_XA[..., None], log_prob_XAV, itself_11V)
  score_XAV = beam.perturbed[..., None] + of_token_XAV
  score_XE, index_XE = jax.lax.top_k(score_XAV.reshape(x, a * v), a + 1)
  return Extensions(index_XE[:, :a] // v, index_XE[:, :a] % v, score_XE)


def _begin(
  uniform_XAU: chex.Array, width_X: chex.Array, *, is_random: bool
) -> tuple[Beam, chex.Array]:
  """One open stream for each leaf that wants any."""
  x, a, _ = uniform_XAU.shape
  root_X = jnp.zeros((x,), jnp.float32)
  if is_random:
    # The root's own noise changes no sample, but without it kappa would be of
    # another distribution than the weights take it for.
    root_X = -jnp.log(-jnp.log1p(-uniform_XAU[:, 0, 2]))
  is_open_XA = (jnp.arange(a)[None] == 0) & (width_X[:, None] > 0)
  beam = Beam(
    log_prob=jnp.zeros((x, a), jnp.float32),
    perturbed=jnp.where(is_open_XA, root_X[:, None], -jnp.inf),
    left_out=jnp.full((x,), -jnp.inf),
  )
  return beam, is_open_XA


def _choose(
  beam: Beam,
  logits_RV: chex.Array,
  is_open_R: chex.Array,
  uniform_XAU: chex.Array,
  width_X: chex.Array,
  *,
  temperature: float,
  min_p: float,
) -> tuple[Beam, Choice]:
  """The best extensions, as many as each leaf wants."""
  x, a = beam.perturbed.shape
  logits_XAV = logits_RV.reshape(x, a, -1)
  is_open_XA = is_open_R.reshape(x, a)
  log_prob_XAV = jax.nn.log_softmax(logits_XAV)
  if temperature == 0:
    tempered_XAV = log_prob_XAV
    extensions = most_likely(log_prob_XAV, is_open_XA, beam)
  else:
    likely_XAV = sampling.drop_unlikely(logits_XAV, min_p)
    tempered_XAV = jax.nn.log_softmax(likely_XAV / temperature)
    extensions = race(tempered_XAV, is_open_XA, beam, uniform_XAU)
  parent_XA, token_XA, perturbed_XE = extensions
  perturbed_XA = jnp.where(
    jnp.arange(a)[None] < width_X[:, None], perturbed_XE[:, :a], -jnp.inf
  )
  first_out_X1 = jnp.take_along_axis(perturbed_XE, width_X[:, None], axis=1)
  at_parent = jnp.arange(x)[:, None], parent_XA
  of_token_XA = tempered_XAV[*at_parent, token_XA]
  new_beam = Beam(
    log_prob=beam.log_prob[at_parent]
    + jnp.where(is_open_XA[at_parent], of_token_XA, 0.0),
    perturbed=perturbed_XA,
    left_out=jnp.maximum(beam.left_out, first_out_X1[:, 0]),
  )
  choice = Choice(
    token=token_XA.reshape(-1),
    log_prob=log_prob_XAV[*at_parent, token_XA].reshape(-1),
    parent=jnp.where(jnp.isneginf(perturbed_XA), -1, parent_XA),
  )
  return new_beam, choice


def _log_inclusion(beam: Beam) -> chex.Array:
  return jnp.where(
    jnp.isneginf(beam.perturbed),
    0.0,
    log_inclusion(beam.log_prob, beam.left_out[:, None]),
  )


def stochastic_beam(temperature: float, min_p: float = 0.0) -> Proposal:
  """The streams of a leaf are a beam: candidates without replacement.

  Args:
    temperature: static; 0 is beam search, with proposal log-probability 0.
    min_p: static, see `sampling.drop_unlikely`; not read at temperature 0.

  Returns:
    The proposal; its state is a `Beam`.
  """
  is_random = temperature > 0
  return Proposal(
    num_uniforms=3,
    begin=functools.partial(_begin, is_random=is_random),
    choose=functools.partial(_choose, temperature=temperature, min_p=min_p),
    log_prob=_log_inclusion
    if is_random
    else lambda beam: jnp.zeros_like(beam.log_prob),
  )
