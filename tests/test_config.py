"""Loading, overriding and validating configs."""

import copy
import dataclasses
import json
import re
import typing

import hypothesis
import hypothesis.strategies as st
import pytest

from qstar_jax import config as config_lib
from qstar_jax import configuration, validation
from qstar_jax.config import ExperimentConfig
from qstar_jax.errors import UserError

NAMES = sorted(path.stem for path in configuration.configs_dir().glob("*.yaml"))


def _write(tmp_path, text):
  path = tmp_path / "experiment.yaml"
  path.write_text(text, encoding="utf-8")
  return str(path)


def _load_errors(tmp_path, text, overrides=()):
  with pytest.raises(UserError) as raised:
    configuration.load(_write(tmp_path, text), overrides)
  return str(raised.value)


def _leaves(cls=ExperimentConfig, prefix=""):
  """Path and annotation of every field that is no section."""
  for name, annotation in typing.get_type_hints(cls).items():
    if dataclasses.is_dataclass(annotation):
      yield from _leaves(annotation, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", annotation


# Loading.


def test_the_defaults_are_valid(tmp_path):
  path = _write(tmp_path, "# Nothing but a comment.\n")
  assert configuration.load(path) == ExperimentConfig()


def test_values_of_every_kind_arrive(tmp_path):
  config = configuration.load(
    _write(
      tmp_path,
      """
      seed: 7
      domain:
        options: {max_number: 9, integers_only: false}
      learner: {learning_rate: 3e-4, max_grad_norm: 2}
      text: {vocabulary: bytes}
      search: {prune_illegal: true, terminal_value: outcome}
      labels:
        judge: {prompts: [is it right, "Step ok?"], right: true to the rules}
      mesh:
      """,
    )
  )
  assert config.seed == 7
  assert config.domain.options == {"max_number": 9, "integers_only": False}
  assert config.learner.learning_rate == 3e-4  # Text, to YAML 1.1.
  assert type(config.learner.max_grad_norm) is float
  assert config.text.vocabulary == "bytes"
  assert config.search.prune_illegal is True
  assert config.labels.judge.prompts == ("is it right", "Step ok?")
  assert config.labels.judge.right == "true to the rules"
  assert config.mesh == config_lib.MeshConfig()


def test_a_run_can_be_started_from_the_config_that_another_stored(tmp_path):
  config = configuration.load("tiny_cpu")
  configuration.claim_run_dir(tmp_path / "run", config)
  stored = tmp_path / "run" / configuration.CONFIG_FILE
  assert configuration.load(str(stored)) == config


def test_an_unknown_name_lists_the_known_ones():
  with pytest.raises(UserError, match="did you mean tiny_cpu") as raised:
    configuration.load("tiny_cp")
  assert all(name in str(raised.value) for name in NAMES)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"seed: [1\n", "line 2: is no valid YAML"),
    (b"seed: 1\nseed: 2\n", "line 2: .*'seed' is written twice"),
    (b"- 1\n", "must be a mapping of fields"),
    (b"name: \xff\n", "save it as UTF-8"),
    (b"a: !!python/object/apply:os.getcwd []\n", "line 1: is no valid YAML"),
  ],
)
def test_a_file_that_is_no_config(tmp_path, content, message):
  path = tmp_path / "broken.yaml"
  path.write_bytes(content)
  with pytest.raises(UserError, match=message) as raised:
    configuration.load(str(path))
  assert str(path) in str(raised.value)


def test_a_missing_file_and_a_folder(tmp_path):
  for path in (tmp_path / "none.yaml", tmp_path):
    with pytest.raises(UserError, match="no such file"):
      configuration.load(str(path))


# What is wrong.


def test_all_errors_are_told_at_once_with_path_value_rule_and_fix(tmp_path):
  message = _load_errors(
    tmp_path,
    """
    seed: -1
    num_iterations: 2.5
    search: {num_simulation: 3, leaves_per_round: 5, utility: valu}
    model: {num_heads: 6, num_kv_heads: 4, head_dim: 33}
    learner: {batch_size: true, value_lambda: .nan}
    domain: {options: {max_numbr: 3}}
    text: 7
    """,
  )
  expected = [
    r"seed is -1: must be in \[0, 2\*\*32\); the default is 0",
    r"num_iterations is 2.5: must be a whole number, not float",
    r"search.num_simulation is 3: .* did you mean num_simulations\?",
    r"search.leaves_per_round is 5: .*num_simulations = 16; use 4 or 8",
    r"search.utility is 'valu': did you mean value\? must be one of value, prm",
    r"model.num_kv_heads is 4: .*model.num_heads = 6; use 3 or 6",
    r"model.head_dim is 33: must be even",
    r"learner.batch_size is True: must be a whole number, not bool",
    r"learner.value_lambda is nan: must be a finite number",
    r"domain.options.max_numbr: .* did you mean max_number\?",
    r"text is 7: must be a mapping",
  ]
  first, *lines = message.splitlines()
  assert first.endswith(f"experiment.yaml: {len(expected)} errors")
  for pattern in expected:
    matching = [line for line in lines if re.search(pattern, line)]
    assert len(matching) == 1, (pattern, message)


def test_a_field_of_the_wrong_type_is_not_judged_by_other_rules(tmp_path):
  message = _load_errors(tmp_path, "model: {num_heads: six, num_kv_heads: 3}")
  assert "errors" not in message
  assert "model.num_heads is 'six': must be a whole number" in message


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (
      "search: {backup: improved, mctx_mode: true}",
      "backup is 'improved': must be mean where search.mctx_mode is set",
    ),
    ("domain: {name: chess}", "domain.name is 'chess': known domains are"),
    ("search: {searcher: mcts}", "known ones are .*gumbel"),
    ("domain: {max_difficulty: 9}", "max_difficulty is 9: countdown has diff"),
    ("domain: {min_difficulty: 2}", "at most domain.max_difficulty = 1"),
    ("domain: {options: {max_number: [1]}}", "domain.options is .*types int"),
    ("search: {prune_illegal: true}", "unless search.terminal_value is outc"),
    (
      "search: {share_statistics: true}",
      "share_statistics is True: must be False unless search.terminal_value",
    ),
    (
      "search: {share_statistics: true, terminal_value: outcome, "
      "mctx_mode: true}",
      "share_statistics is True: .*or search.mctx_mode is set",
    ),
    (
      "search: {share_statistics: true, terminal_value: outcome, "
      "searcher: mpc}",
      "share_statistics is True: .*where search.searcher is mpc",
    ),
    (
      "search: {proposal: stochastic_beam, searcher: mpc}",
      "sample where search.searcher is mpc",
    ),
    (
      "search: {proposal: stochastic_beam, tot_scoring: vote}",
      "tot_scoring is 'vote': must be value unless search.proposal is sample",
    ),
    ("replay: {window_trees: 10}", "replay.window_trees is 10: .*use 256 or"),
    ("evaluation: {num_problems: 501}", "domain.held_out_problems = 500"),
    ("labels: {alpha: 0}", r"labels.alpha is 0.0: must be in \(0, 1\]"),
    (
      "labels: {judge: {prompts: []}}",
      "prompts is .*: must be one text or mor",
    ),
    ("labels: {judge: {prompts: ok}}", "prompts is 'ok': must be a list, as"),
    ("labels: {judge: {prompts: [1]}}", r"is \[1\]: must be text"),
    ('labels: {judge: {prompts: ["a\\nb"]}}', "each without a newline"),
    ("labels: {judge: {wrong: ''}}", "judge.wrong is '': must be a text"),
    ("labels: {judge: {right: no}}", r"put it in quotes"),
    ("labels: {judge: {right: bad, wrong: bad}}", "another text than labels"),
    (
      "self_play: {problems_per_iteration: 0}",
      "problems_per_iteration is 0: must be 1 or more, or there is nothing to",
    ),
    ("data: {trees: runs/other}", "data.trees is 'runs/other': must be empty"),
    (
      "data: {trees: runs/other}\n"
      "self_play: {problems_per_iteration: 0}\n"
      "replay: {max_staleness: 5}",
      "max_staleness is 5: must be 0 where data.trees is set",
    ),
    (
      "replay: {max_staleness: 63}",
      "max_staleness is 63: must be 0 or at least learner.steps_per_iteration",
    ),
    (
      "domain: {name: text, held_out_problems: 0}\n"
      "data: {labels: prm800k:a}\n"
      "self_play: {problems_per_iteration: 0}\n"
      "evaluation: {num_problems: 0}",
      "warm_start.steps is 300: must be 0, since text has no problems",
    ),
    ("data: {label_share: 1}", r"label_share is 1.0: must be in \(0, 1\)"),
    ("mesh: {fsdp: -1}", "keep one -1"),
    (
      "run_mode: files\nself_play: {problems_per_iteration: 0}\n"
      "data: {labels: runs/labels}",
      "run_mode is 'files': must be alternate where .* is 0: nobody plays",
    ),
    ("run_mode: splt", r"run_mode is 'splt': did you mean split\?"),
    ("run_mode: split", "actor_devices is 0: must be 1 or more where run_mode"),
    ("mesh: {actor_devices: 2}", "run_mode is alternate; leave it out, or set"),
    (
      "self_play: {publish_every_iterations: 2}",
      "publish_every_iterations is 2: must be 1 unless run_mode is split",
    ),
    ("self_play: {max_lead: 0}", "self_play.max_lead is 0: must be 1 or more"),
    (
      "run_mode: files\ncheckpoint: {every_iterations: 5}",
      "max_lead is 1: must be at least checkpoint.every_iterations = 5 .*use 5",
    ),
    (
      "run_mode: split\nmesh: {actor_devices: 1}\n"
      "replay: {max_staleness: 64}\nself_play: {max_lead: 3}",
      "max_staleness is 64: must be 0, or at least .*; use 255 or more",
    ),
    (
      "run_mode: files\nself_play: {max_lead: 2}\n"
      "checkpoint: {every_iterations: 2}\nreplay: {max_staleness: 64}",
      "max_staleness is 64: must be 0, or at least .*; use 127 or more",
    ),
    (
      "gate: {every_iterations: 1}\nreplay: {max_staleness: 64}",
      "max_staleness is 64: must be 0 where gate.every_iterations is set",
    ),
    ("mesh: {fsdp: -2}", "mesh.fsdp is -2: must be 1 or more, or -1"),
    (
      "learner: {learning_rate: 0}",
      "learner.learning_rate is 0.0: must be abo",
    ),
    (
      "learner: {losses: {polcy: 1}}",
      r"learner.losses is .*: did you mean policy\? must be one of policy, ",
    ),
    (
      "search: {heuristic: token_q}",
      "heuristic is 'token_q': must be value or max_q unless model.token_q",
    ),
    (
      "{learner: {losses: {cql: 1, token_q: 1}}, model: {token_q: true}}",
      "learner.losses is .*: must be with both of token_q and token_value, and",
    ),
    ("learner: {kl_target: 0.1}", "kl_target is 0.1: must be 0 unless .* kl"),
    (
      "{learner: {reward: progress}, search: {utility: prm}}",
      "reward is 'progress': must be something else unless search.utility is",
    ),
    ("learner: {losses: {prm: -1}}", "weights of 0 or more; the default is"),
    ("learner: {losses: {}}", "losses is {}: must be one or more, with"),
    ("name: ../elsewhere", "name is '../elsewhere': must be letters, digits"),
    ("name: 1", "name is 1: must be text"),
  ],
)
def test_one_mistake_gives_one_line(tmp_path, text, message):
  with pytest.raises(UserError, match=message) as raised:
    configuration.load(_write(tmp_path, text))
  assert "\n" not in str(raised.value)


def test_every_number_of_the_config_has_a_bound():
  numbers = {path for path, kind in _leaves() if kind in (int, float)}
  assert numbers <= set(validation.BOUNDS)
  assert set(validation.BOUNDS) <= dict(_leaves()).keys()


def test_relations_name_fields_that_exist():
  for relation in validation.RELATIONS:
    assert set(relation.fields) <= dict(_leaves()).keys()


_PLAIN = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
  lambda inner: st.dictionaries(st.text(max_size=5), inner, max_size=3),
  max_leaves=4,
)


@hypothesis.given(path=st.sampled_from(sorted(dict(_leaves()))), value=_PLAIN)
def test_any_value_of_any_field_is_taken_or_refused_by_name(path, value):
  data = configuration.to_json(ExperimentConfig())
  *sections, field = path.split(".")
  section = data
  for name in sections:
    section = section[name]
  section[field] = value
  config, errors = configuration.parse(data)
  assert set(errors) <= {path}
  rules = validation.find_errors(config, ignore=errors)
  if errors:
    # The default stands in for it, and breaks no rule.
    assert config == ExperimentConfig()
    assert not rules


# Overrides.


def test_overrides():
  config = configuration.load(
    "tiny_cpu",
    [
      *("--search.num-simulations", "32"),
      *("--learner.learning-rate", "2e-3"),
      *("--domain.options.max-number", "8"),
      "--search.prune-illegal",
      *("--labels.judge.prompts", "ok?", "is it?"),
      *("--search.terminal-value", "outcome"),
      *("--mesh.data", "-1"),
    ],
  )
  assert config.search.num_simulations == 32
  assert config.learner.learning_rate == 2e-3
  assert config.domain.options["max_number"] == 8
  assert config.search.prune_illegal
  assert config.labels.judge.prompts == ("ok?", "is it?")
  assert config.name == "tiny_cpu"  # The file's own, not the default.


def test_an_override_can_repair_a_value_that_breaks_a_rule(tmp_path):
  path = _write(tmp_path, "search: {num_simulations: 15, leaves_per_round: 4}")
  config = configuration.load(path, ["--search.num-simulations", "16"])
  assert config.search.num_simulations == 16


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--search.num-simulation", "3"], "meant: --search.num-simulations INT"),
    (["--search.num-simulations", "many"], "'many'"),
    (["--search.num-simulations"], "Missing value"),
    (["--search.utility", "reward"], "Expected one of"),
    (["stray"], "Unrecognized options: stray"),
    (["--search.leaves-per-round", "5"], "leaves_per_round is 5"),
  ],
)
def test_a_wrong_override_is_one_line(flags, message):
  with pytest.raises(UserError, match=message) as raised:
    configuration.load("tiny_cpu", flags)
  assert "\n" not in str(raised.value)


def test_errors_of_file_and_overrides_come_together(tmp_path):
  message = _load_errors(tmp_path, "seeed: 1", ["--nmae", "x"])
  assert "2 errors" in message
  assert "did you mean seed?" in message
  assert "--name" in message


def test_help_shows_the_values_of_the_file(capsys):
  with pytest.raises(SystemExit) as raised:
    configuration.load("tiny_cpu", ["--help"])
  assert raised.value.code == 0
  assert "(default: tiny_cpu)" in capsys.readouterr().out


# The stored config.


def test_json_round_trip():
  config = configuration.load("tiny_cpu", ["--domain.options.max-number", "7"])
  stored = json.loads(json.dumps(configuration.to_json(config)))
  assert configuration.from_json(stored) == config


def test_a_stored_config_of_an_older_version_gets_the_new_fields():
  stored = configuration.to_json(ExperimentConfig(seed=3))
  del stored["search"]["temperature"]
  assert configuration.from_json(stored) == ExperimentConfig(seed=3)


def test_a_stored_config_from_when_each_loss_had_a_field():
  stored = configuration.to_json(ExperimentConfig())
  del stored["learner"]["losses"]
  stored["learner"] |= {"policy_weight": 2.0, "prm_weight": 0.5}
  stored["learner"]["value_weight"] = 0.0
  learner = configuration.from_json(stored).learner
  assert learner.losses == {"policy": 2.0, "value": 0.0, "prm": 0.5}


def test_a_stored_config_from_when_fields_had_other_names():
  stored = configuration.to_json(ExperimentConfig())
  del stored["learner"]["light_steps"], stored["curriculum"]["related_share"]
  stored["learner"]["light_lines"] = 0.125
  stored["curriculum"]["random_play_share"] = 0.5
  config = configuration.from_json(stored)
  assert config.learner.light_steps == 0.125
  assert config.curriculum.related_share == 0.5


def test_a_stored_config_with_a_foreign_field_is_refused():
  stored = configuration.to_json(ExperimentConfig()) | {"sede": 3}
  with pytest.raises(UserError, match="did you mean seed"):
    configuration.from_json(stored)


def test_a_run_directory_is_claimed_once_and_continued_by_the_same(tmp_path):
  run_dir = tmp_path / "runs" / "one"
  config = configuration.load("tiny_cpu")
  configuration.claim_run_dir(run_dir, config)
  configuration.claim_run_dir(run_dir, copy.deepcopy(config))
  other = dataclasses.replace(config, seed=config.seed + 1)
  with pytest.raises(UserError, match=r"\(seed is 1, was 0\); use another run"):
    configuration.claim_run_dir(run_dir, other)
  moved = dataclasses.replace(config, mesh=config_lib.MeshConfig(data=4))
  configuration.claim_run_dir(run_dir, moved)
  stored = json.loads((run_dir / configuration.CONFIG_FILE).read_text())
  assert configuration.from_json(stored) == moved


def test_the_config_of_a_run_is_found_from_the_run_and_its_checkpoints(
  tmp_path,
):
  config = configuration.load("tiny_cpu")
  configuration.claim_run_dir(tmp_path, config)
  for run in (tmp_path, tmp_path / "checkpoints" / "64"):
    flags = ["--search.num-simulations", "32"]
    loaded = configuration.load_run(run, flags, prog="qstar evaluate RUN")
    assert loaded.search.num_simulations == 32
    assert loaded.learner == config.learner
  with pytest.raises(UserError, match="is no run directory"):
    configuration.load_run(tmp_path / "runs", prog="qstar evaluate RUN")


def test_a_damaged_stored_config_is_refused(tmp_path):
  (tmp_path / configuration.CONFIG_FILE).write_text('{"seed": 1')
  with pytest.raises(UserError, match=r"config\.json: cannot be read"):
    configuration.claim_run_dir(tmp_path, ExperimentConfig())


def test_a_run_directory_that_cannot_be_made(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="file"):
    configuration.claim_run_dir(tmp_path / "file" / "run", ExperimentConfig())


def test_flags_name_losses_that_the_config_has_not():
  flags = ["--learner.losses.kl=0.1", "--learner.losses.prm-ranking", "0.5"]
  losses = configuration.load("tiny_cpu", [*flags]).learner.losses
  added = {"kl": 0.1, "prm_ranking": 0.5}
  assert losses == {"policy": 1.0, "value": 1.0, "prm": 1.0, **added}
  with pytest.raises(UserError, match=r"--learner.losses.foo"):
    configuration.load("tiny_cpu", ["--learner.losses.foo", "1"])
