"""Labels of any number take no more memory than a few."""

import resource
import tracemalloc

import numpy as np
import pytest
from etils import epath

from qstar_jax.labels import codec, job
from qstar_jax.records import LabelledLine
from qstar_jax.store.reader import StoreReader

_STEPS_PER_LINE = 40
_LINES_PER_ITEM = 25


def _lines(item):
  """25 lines of 40 steps: a thousand steps."""
  steps = tuple(f"{item} + {i} = {item + i}" for i in range(_STEPS_PER_LINE))
  label = np.full(_STEPS_PER_LINE, item % 2, np.float32)
  line = LabelledLine(
    domain="generated",
    problem_key=str(item),
    prompt=f"{item} -> ?\n",
    steps=steps,
    is_finished=True,
    label=label,
    kind="hard",
    source="checked",
    params_version=-1,
    tokens=1,
    origin=f"item {item}",
  )
  return [line] * _LINES_PER_ITEM


def _write(out, num_items):
  job.run(_lines, epath.Path(out), num_items=num_items, shard_lines=250)


def _read(out):
  num_steps = 0
  for line in StoreReader(out, codec.LINES):
    num_steps += int((line.label >= 0).sum())
  return num_steps


def _peak(function, *args):
  """What a call returns, and the most bytes that Python held in it."""
  tracemalloc.start()
  try:
    return function(*args), tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()


def test_python_holds_no_more_for_a_longer_stream(tmp_path):
  """Two thirds of the steps are a thousand lines, of 2 kB each when encoded."""
  _write(tmp_path / "warm_up", 20)
  _, few_written = _peak(_write, tmp_path / "few", 20)
  _, many_written = _peak(_write, tmp_path / "many", 60)
  assert many_written < few_written + 200_000
  num_few, few_read = _peak(_read, tmp_path / "few")
  num_many, many_read = _peak(_read, tmp_path / "many")
  assert (num_few, num_many) == (20_000, 60_000)
  assert many_read < few_read + 200_000


def _resident_megabytes():
  with open("/proc/self/statm") as statm:
    pages = int(statm.read().split()[1])
  return pages * resource.getpagesize() / 2**20


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_million_steps(tmp_path):
  """The process itself does not grow between the first tenth and the last."""
  sizes = []

  def on_progress(done, total):
    if done % (total // 10) == 0:
      sizes.append(_resident_megabytes())

  job.run(
    _lines,
    epath.Path(tmp_path),
    num_items=10_000,
    shard_lines=1000,
    on_progress=on_progress,
  )
  assert sizes[-1] < sizes[1] + 20
  sizes, num_steps = [], 0
  for index, line in enumerate(StoreReader(tmp_path, codec.LINES)):
    num_steps += len(line.steps)
    if index % 25_000 == 0:
      sizes.append(_resident_megabytes())
  assert num_steps == 10_000_000
  assert sizes[-1] < sizes[1] + 20
