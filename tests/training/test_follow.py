"""Looking at a run from outside: checkpoints that come, and that vanish."""

import json
import logging

import pytest
from etils import epath

from qstar_jax import checkpoint as checkpoint_lib
from qstar_jax.checkpoint import CheckpointError
from qstar_jax.errors import UserError
from qstar_jax.store import files
from qstar_jax.training import follow as follow_lib
from qstar_jax.training import waiting
from qstar_jax.training.preemption import Preempted, PreemptionFlag
from qstar_jax.training.waiting import Waiter
from qstar_jax.training.watch import RunWatch, Status


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
  monkeypatch.setattr(waiting, "_LOCAL", 0.001)


class _Run:
  """A run whose checkpoints come as it is looked at: lists of their steps."""

  def __init__(self, *listings, is_done=True):
    self._listings = list(listings)
    self._is_done = is_done

  def status(self):
    if len(self._listings) > 1:
      self._listings.pop(0)
    steps = self._listings[0]
    is_done = self._is_done and len(self._listings) == 1
    return Status(steps[-1], steps[-1], True, is_done, {}) if steps else None

  def steps(self):
    return self._listings[0]

  def read(self, step, look):
    return look()


@pytest.fixture
def follow(tmp_path, monkeypatch):
  """Follows a run; returns the steps that were evaluated."""
  out = epath.Path(tmp_path) / "out"

  def run(watched, *, vanish=(), flag=None, searcher="greedy"):
    monkeypatch.setattr(follow_lib, "RunWatch", lambda *_: watched)
    seen = []

    def evaluate(step, folder):
      seen.append(step)
      if flag is not None and len(seen) == 2:
        flag.set()
        flag.check()
      return [{"top1": 0.5}]

    follow_lib.follow(
      epath.Path(tmp_path) / "run",
      out,
      flag or PreemptionFlag(),
      options={"searcher": searcher},
      open_step=lambda path: None if int(path.name) in vanish else path.name,
      evaluate=evaluate,
      show=lambda step, rows: None,
    )
    return seen

  run.out = out
  return run


def test_every_step_is_evaluated_once(follow, capsys):
  seen = follow(_Run([], [], [], [0], [0, 6], [6, 12], [12], [12, 18]))
  assert seen == ["0", "6", "12", "18"]
  assert capsys.readouterr().err.startswith("waiting for checkpoints in ")
  results = json.loads((follow.out / "step_00000012.json").read_text())
  assert results == {"step": 12, "results": [{"top1": 0.5}]}


def test_steps_that_vanish_are_passed_over(follow):
  assert follow(_Run([0], [0, 6], [6, 12]), vanish={6}) == ["0", "12"]
  assert not (follow.out / "step_00000006.json").exists()


def test_it_goes_on_where_it_was_stopped(follow):
  flag = PreemptionFlag()
  with pytest.raises(Preempted):
    follow(_Run([0], [0, 6], is_done=False), flag=flag)
  # The step that was under way has no result.
  assert not (follow.out / "step_00000006.json").exists()
  assert follow(_Run([0, 6], [0, 6, 12])) == ["6", "12"]
  assert follow(_Run([0, 6, 12])) == []


def test_other_options_are_refused(follow):
  follow(_Run([0]))
  with pytest.raises(
    UserError, match=r"searcher is 'beam', was 'greedy'.*--out"
  ):
    follow(_Run([0]), searcher="beam")
  (follow.out / "follow.json").write_text("[")
  with pytest.raises(UserError, match="cannot be read"):
    follow(_Run([0]))


def test_a_checkpoint_that_goes_while_it_is_read(tmp_path, monkeypatch):
  watch = RunWatch(tmp_path, Waiter(tmp_path, PreemptionFlag()))
  listings = iter([[6, 12], [12]])
  monkeypatch.setattr(watch, "steps", lambda: next(listings))
  looks = []

  def look():
    looks.append(None)
    raise CheckpointError("half of it is there")

  assert watch.read(6, look) is None
  assert len(looks) == 2
  # One that stays is damaged.
  monkeypatch.setattr(watch, "steps", lambda: [6])
  looks.clear()
  with pytest.raises(CheckpointError, match="half of it"):
    watch.read(6, look)
  assert len(looks) == 10


def test_a_mistake_of_the_user_ends_it_at_once(tmp_path, monkeypatch):
  watch = RunWatch(tmp_path, Waiter(tmp_path, PreemptionFlag()))
  monkeypatch.setattr(watch, "steps", lambda: [6])
  looks = []

  def look():
    looks.append(None)
    raise UserError("no such domain")

  with pytest.raises(UserError, match="no such domain"):
    watch.read(6, look)
  assert len(looks) == 1


def test_checkpoints_are_looked_into_when_others_are_listed(
  tmp_path, monkeypatch
):
  watch = RunWatch(tmp_path, Waiter(tmp_path, PreemptionFlag()))
  finished, reads = [], []

  def finished_steps(run_dir):
    reads.append(None)
    assert not logging.getLogger("absl").isEnabledFor(logging.WARNING)
    return sorted(finished)

  monkeypatch.setattr(checkpoint_lib, "finished_steps", finished_steps)

  def look():
    """The steps that are found, and whether anything was read for that."""
    reads.clear()
    return watch.steps(), len(reads)

  assert look()[0] == []
  assert [look() for _ in range(3)] == [([], 0)] * 3
  root = epath.Path(tmp_path) / "checkpoints"
  for step in (0, 6, 12):
    files.make_folder(root / f"{step}.orbax-checkpoint-tmp")
    assert look()[1] == 0
    files.make_folder(root / str(step))
    # In a bucket it is listed before it is finished.
    assert look() == (sorted(finished), 1)
    finished.append(step)
    assert look() == (sorted(finished), 1)
    assert [look() for _ in range(3)] == [(sorted(finished), 0)] * 3
  (root / "0").rmdir()
  finished.remove(0)
  assert look() == ([6, 12], 1)
  assert look() == ([6, 12], 0)


def test_no_run_is_there_yet(tmp_path):
  watch = RunWatch(tmp_path, Waiter(tmp_path, PreemptionFlag()))
  assert watch.steps() == []
  assert watch.status() is None
