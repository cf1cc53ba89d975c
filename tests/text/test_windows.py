"""Windows against the rules that they state."""

import hypothesis
from hypothesis import strategies as st

from qstar_jax.text.vocabulary import ByteVocabulary
from qstar_jax.text.windows import Window, excerpts, windows

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


@hypothesis.given(
  st.lists(st.text("ab", min_size=1, max_size=40), max_size=14),
  st.integers(10, 80),
)
def test_an_excerpt_says_how_many_steps_it_leaves_out(steps, limit):
  vocabulary = ByteVocabulary()
  texts = []
  for window, prompt, note, shown in excerpts(
    vocabulary, "a?\n", steps, limit, is_finished=False
  ):
    assert sum(map(len, [prompt, note, *shown])) <= limit
    assert vocabulary.decode(prompt) == "a?\n"
    own = shown[window.begin - window.first :]
    expected = f"({window.first} steps before)\n" if window.first else ""
    if expected and not note:
      # As long as any note is here, it does not fit beside the first own step.
      assert len(prompt) + len(expected) + 1 + len(own[0]) > limit
    else:
      assert vocabulary.decode(note) == expected
    texts += [vocabulary.decode(step)[:-1] for step in own]
    assert len(own) == window.end - window.begin
  # Every step once, but for those that are too long.
  left = iter(steps)
  assert all(text in left for text in texts)
  fitting = [step for step in steps if 3 + len(step) + 1 <= limit]
  assert len(texts) == len(fitting)


def test_of_a_long_prompt_the_end_is_shown():
  vocabulary = ByteVocabulary()
  found = list(
    excerpts(vocabulary, "What is 1 + 1?\n", ["2", "3"], 10, is_finished=True)
  )
  assert [vocabulary.decode(e.prompt) for e in found] == ["+ 1?\n"]
  assert [*map(vocabulary.decode, found[0].steps)] == ["2\n", "3"]
  # Where all of it fits, all of it is shown.
  (whole,) = excerpts(
    vocabulary, "What is 1 + 1?\n", ["2", "3"], 19, is_finished=True
  )
  assert vocabulary.decode(whole.prompt) == "What is 1 + 1?\n"
