"""Windows against the rules that they state."""

import hypothesis
from hypothesis import strategies as st

from qstar_jax.text.windows import Window, windows

_LENGTHS = st.lists(st.integers(1, 12), max_size=15)


def test_worked_by_hand():
  # Room for 10: 3 + 3 + 3 fit; then 3 of context and as much as fits.
  assert list(windows(2, [3, 3, 3, 3, 3, 3], 12)) == [
    Window(0, 0, 3),
    Window(2, 3, 5),
    Window(4, 5, 6),
  ]
  # What fits nowhere is in none; a long step gets what context there is room.
  assert list(windows(2, [4, 11, 9, 1], 12)) == [
    Window(0, 0, 1),
    Window(2, 2, 4),
  ]
  assert list(windows(12, [1], 12)) == list(windows(1, [], 12)) == []


@hypothesis.given(st.integers(1, 5), _LENGTHS, st.integers(1, 30))
def test_every_step_that_fits_is_the_own_of_one(prompt, lengths, limit):
  found = list(windows(prompt, lengths, limit))
  own = [i for w in found for i in range(w.begin, w.end)]
  fitting = [i for i, n in enumerate(lengths) if prompt + n <= limit]
  assert own == fitting
  for w in found:
    assert w.first <= w.begin < w.end
    assert prompt + sum(lengths[w.first : w.end]) <= limit
    assert sum(lengths[w.first : w.begin]) <= (limit - prompt) / 2
    # No room is wasted.
    if w.end < len(lengths):
      assert prompt + sum(lengths[w.first : w.end + 1]) > limit


@hypothesis.given(_LENGTHS, st.integers(4, 30))
def test_what_a_step_is_read_after_does_not_depend_on_what_follows(
  lengths, limit
):
  def first_shown(lengths):
    return {
      i: w.first
      for w in windows(3, lengths, limit)
      for i in range(w.begin, w.end)
    }

  whole = first_shown(lengths)
  for end in range(len(lengths)):
    part = first_shown(lengths[:end])
    assert part == {i: whole[i] for i in whole if i < end}
