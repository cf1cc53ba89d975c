"""Windows against the rules that they state."""

import hypothesis
from hypothesis import strategies as st

from qstar_jax.text.vocabulary import ByteVocabulary
from qstar_jax.text.windows import Window, excerpts, windows
from tests.text.bounds import bounds

_LENGTHS = st.lists(st.integers(1, 12), max_size=15)


def test_worked_by_hand():
  # Room for 10: 3 + 3 + 3 fit; then 3 of context and as much as fits.
  assert list(windows([3, 3, 3, 3, 3, 3], 9, 10)) == [
    Window(0, 0, 3),
    Window(2, 3, 5),
    Window(4, 5, 6),
  ]
  # What fits nowhere is in none; a long step gets what context there is room.
  assert list(windows([4, 11, 9, 1], 9, 10)) == [
    Window(0, 0, 1),
    Window(2, 2, 4),
  ]
  assert list(windows([1], 9, 0)) == list(windows([], 9, 11)) == []
  # Three steps at most: one of context and two more.
  assert list(windows([1] * 6, 3, 10)) == [
    Window(0, 0, 3),
    Window(2, 3, 5),
    Window(4, 5, 6),
  ]
  assert list(windows([1] * 2, 1, 10)) == [Window(0, 0, 1), Window(1, 1, 2)]


@hypothesis.given(_LENGTHS, st.integers(1, 6), st.integers(0, 30))
def test_every_step_that_fits_is_the_own_of_one(lengths, max_steps, limit):
  found = list(windows(lengths, max_steps, limit))
  own = [i for w in found for i in range(w.begin, w.end)]
  assert own == [i for i, n in enumerate(lengths) if n <= limit]
  for w in found:
    assert w.first <= w.begin < w.end <= w.first + max_steps
    assert sum(lengths[w.first : w.end]) <= limit
    assert sum(lengths[w.first : w.begin]) <= limit / 2
    assert w.begin - w.first <= max_steps / 2
    # No room is wasted.
    if w.end < len(lengths) and w.end - w.first < max_steps:
      assert sum(lengths[w.first : w.end + 1]) > limit


@hypothesis.given(_LENGTHS, st.integers(1, 6), st.integers(1, 30))
def test_what_a_step_is_read_after_does_not_depend_on_what_follows(
  lengths, max_steps, limit
):
  def first_shown(lengths):
    return {
      i: w.first
      for w in windows(lengths, max_steps, limit)
      for i in range(w.begin, w.end)
    }

  whole = first_shown(lengths)
  for end in range(len(lengths)):
    part = first_shown(lengths[:end])
    assert part == {i: whole[i] for i in whole if i < end}


@hypothesis.given(
  st.lists(st.text("ab", min_size=1, max_size=40), max_size=14),
  st.integers(1, 4),
  st.integers(7, 40),
)
def test_an_excerpt_says_how_many_steps_it_leaves_out(
  steps, max_steps, max_step_tokens
):
  vocabulary = ByteVocabulary()
  text = bounds(3, max_steps, max_step_tokens)
  limit = text.max_line_tokens
  texts = []
  for window, prompt, note, shown in excerpts(
    vocabulary, "a?\n", steps, text, is_finished=False
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
  line = vocabulary, "What is 1 + 1?\n", ["2", "3"]
  (found,) = excerpts(*line, bounds(5, 2, 2), is_finished=True)
  assert vocabulary.decode(found.prompt) == "+ 1?\n"
  assert [*map(vocabulary.decode, found.steps)] == ["2\n", "3"]
  (whole,) = excerpts(*line, bounds(15, 2, 2), is_finished=True)
  assert vocabulary.decode(whole.prompt) == "What is 1 + 1?\n"
