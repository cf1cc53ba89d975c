"""From YAML, JSON and the command line to a checked `ExperimentConfig`.

The dataclasses of `config` are the schema: their annotations say what may be
written, `validation` says which values make sense together.
"""

import contextlib
import dataclasses
import difflib
import io
import json
import math
import pathlib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from etils import epath

from qstar_jax import validation
from qstar_jax.config import ExperimentConfig
from qstar_jax.config.learning import LossName
from qstar_jax.errors import UserError
from qstar_jax.store import files

CONFIG_FILE = "config.json"


def load(
  name_or_path: str,
  overrides: Sequence[str] = (),
  *,
  prog: str = "qstar train CONFIG",
) -> ExperimentConfig:
  """Reads, overrides and validates a config.

  Args:
    name_or_path: a file (YAML, or the config.json of a run; local or bucket),
      or the name of one in configs/.
    overrides: e.g. `["--search.num-simulations", "32"]`. `--help` among them
      prints every field and exits.
    prog: the command, as the help and the errors call it.

  Returns:
    The config; every rule of `validation.find_errors` holds.

  Raises:
    UserError: all that is wrong, one line each, with path, value, rule and fix.
  """
  path = find_config(name_or_path)
  config, errors = parse(_read_yaml(path))
  config, override_errors = _override(config, overrides, prog)
  _raise_all(
    str(path),
    [
      *errors.values(),
      *override_errors,
      *validation.find_errors(config, ignore=errors),
    ],
  )
  return config


def run_directory(run: epath.PathLike) -> epath.Path:
  """That of a run, given it or one of its RUN/checkpoints/STEP."""
  path = epath.Path(run)
  return path.parent.parent if path.parent.name == "checkpoints" else path


def load_run(
  run: epath.PathLike, overrides: Sequence[str] = (), *, prog: str
) -> ExperimentConfig:
  """The config of a run, overridden and validated as by `load`.

  Args:
    run: a run directory, or `RUN/checkpoints/STEP`.
    overrides: as in `load`.
    prog: as in `load`.

  Raises:
    UserError: no run is there; otherwise as `load`.
  """
  path = run_directory(run)
  if not files.exists(path / CONFIG_FILE):
    raise UserError(
      f"{run}: is no run directory, it has no {CONFIG_FILE}; give a directory "
      "made by `qstar train`, or RUN/checkpoints/STEP"
    )
  return load(str(path / CONFIG_FILE), overrides, prog=prog)


def override(
  config: ExperimentConfig, overrides: Sequence[str], *, source: str
) -> ExperimentConfig:
  """A config with some fields changed, validated.

  Args:
    config: to change.
    overrides: as in `load`.
    source: what asks for them, as the errors call it.

  Raises:
    UserError: as `load`.
  """
  config, errors = _override(config, overrides, source)
  _raise_all(source, errors or validation.find_errors(config))
  return config


def _raise_all(source: str, errors: Sequence[str]) -> None:
  if len(errors) == 1:
    raise UserError(f"{source}: {errors[0]}")
  if errors:
    lines = "".join(f"\n  {error}" for error in errors)
    raise UserError(f"{source}: {len(errors)} errors{lines}")


# Finding and reading.


def configs_dir() -> pathlib.Path:
  """configs/ of the installed package, else of the repository it runs from."""
  package = pathlib.Path(__file__).parent
  installed = package / "configs"
  return installed if installed.is_dir() else package.parent / "configs"


def find_config(name_or_path: str) -> epath.Path:
  """The file that a user means.

  Raises:
    UserError: there is none; the message lists the known names.
  """
  path = epath.Path(name_or_path)
  if path.suffix in (".yaml", ".yml", ".json") or "/" in name_or_path:
    if not path.is_file():
      raise UserError(f"config {name_or_path!r}: no such file; check the path")
    return path
  named = {file.stem: file for file in configs_dir().glob("*.yaml")}
  if name_or_path not in named:
    raise UserError(
      f"config {name_or_path!r}: no such name; {_suggest(name_or_path, named)}"
      f"known ones are {', '.join(sorted(named))}; or give the path of a file"
    )
  return epath.Path(named[name_or_path])


class _Loader(yaml.SafeLoader):
  """YAML in which a key that is written twice is an error."""

  def construct_mapping(self, node, deep=False):
    keys = [key.value for key, _ in node.value]
    for index, (key, _) in enumerate(node.value):
      if key.value in keys[:index]:
        raise yaml.constructor.ConstructorError(
          problem=f"{key.value!r} is written twice; keep one of them",
          problem_mark=key.start_mark,
        )
    return super().construct_mapping(node, deep)


def _read_yaml(path: epath.Path) -> Any:
  try:
    return yaml.load(files.read_bytes(path).decode(), _Loader)
  except UnicodeDecodeError as error:
    raise UserError(f"{path}: is no UTF-8 text; save it as UTF-8") from error
  except yaml.YAMLError as error:
    mark = getattr(error, "problem_mark", None)
    line = f" line {mark.line + 1}" if mark else ""
    problem = getattr(error, "problem", None) or str(error)
    raise UserError(f"{path}{line}: is no valid YAML: {problem}") from error


# Parsing: plain data against the annotations of the dataclasses.


def parse(data: Any) -> tuple[ExperimentConfig, dict[str, str]]:
  """A config from plain data (mappings, numbers, strings).

  Args:
    data: what YAML or JSON held; fields that are left out keep their defaults.

  Returns:
    The config, in which wrong fields keep their defaults too, and a message for
    every wrong field by its path, e.g. `search.num_simulation`.
  """
  errors: dict[str, str] = {}
  return _parse_dataclass(ExperimentConfig, data, "", errors), errors


def _parse_dataclass(
  cls: type, data: Any, prefix: str, errors: dict[str, str]
) -> Any:
  """An instance of `cls`; adds what is wrong to `errors`."""
  if data is None:  # A section whose every line is commented out.
    data = {}
  if not isinstance(data, Mapping):
    path = prefix.rstrip(".") or "the config"
    errors[path] = (
      f"{path} is {data!r}: must be a mapping of fields, as in `name: value`"
    )
    return cls()
  annotations = typing.get_type_hints(cls)
  values = {}
  for key, value in data.items():
    path = f"{prefix}{key}"
    if key not in annotations:
      errors[path] = (
        f"{path} is {value!r}: there is no such field; "
        f"{_suggest(str(key), annotations)}"
        f"known ones are {', '.join(annotations)}"
      )
    elif dataclasses.is_dataclass(annotations[key]):
      values[key] = _parse_dataclass(
        annotations[key], value, f"{path}.", errors
      )
    else:
      try:
        values[key] = _convert(value, annotations[key])
      except TypeError as error:
        errors[path] = f"{path} is {value!r}: {error}"
  return cls(**values)


def _convert(value: Any, annotation: Any) -> Any:
  """`value` as the annotated type; TypeError with the rule if it is not."""
  origin, options = typing.get_origin(annotation), typing.get_args(annotation)
  if origin is typing.Literal:
    if value in options and type(value) in map(type, options):
      return value
    known = ", ".join(map(str, options))
    raise TypeError(f"{_suggest(str(value), options)}must be one of {known}")
  if origin is types.UnionType:
    if type(value) in options:
      return _convert(value, type(value))
    names = ", ".join(option.__name__ for option in options)
    raise TypeError(f"must be one of the types {names}")
  if origin is dict:
    if not isinstance(value, Mapping):
      raise TypeError("must be a mapping, as in `{name: value}`")
    return {
      _convert(key, options[0]): _convert(item, options[1])
      for key, item in value.items()
    }
  if origin is tuple:
    if not isinstance(value, list | tuple):
      raise TypeError("must be a list, as in `[one, two]`")
    return tuple(_convert(item, options[0]) for item in value)
  if annotation is float:
    return _convert_to_float(value)
  if type(value) is not annotation:
    name = _TYPE_NAMES[annotation]
    raise TypeError(f"must be {name}, not {type(value).__name__}")
  return value


_TYPE_NAMES = {
  bool: "true or false",
  int: "a whole number",
  str: "text (put it in quotes)",
}
# YAML 1.1 reads 1e-3, unlike 1.0e-3, as text.
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def _convert_to_float(value: Any) -> float:
  if isinstance(value, str) and _EXPONENT.fullmatch(value):
    value = float(value)
  if type(value) not in (int, float) or not math.isfinite(value):
    raise TypeError("must be a finite number")
  return float(value)


def _suggest(word: str, known: Sequence[Any] | Mapping[str, Any]) -> str:
  close = difflib.get_close_matches(word, list(map(str, known)), n=1)
  return f"did you mean {close[0]}? " if close else ""


# Overriding, on the command line.


def _override(
  config: ExperimentConfig, overrides: Sequence[str], prog: str
) -> tuple[ExperimentConfig, list[str]]:
  """The config with flags applied, or as it was and what is wrong with them."""
  if not overrides:
    return config, []
  import tyro  # Only commands need it, not the readers of a stored config.

  config = _with_losses_named(config, overrides)
  messages = io.StringIO()
  try:
    with contextlib.redirect_stderr(messages):
      flags = list(overrides)
      return tyro.cli(
        ExperimentConfig, args=flags, default=config, prog=prog
      ), []
  except SystemExit as exit_request:
    if not exit_request.code:  # --help
      raise
  # tyro draws a box; what it says inside is one sentence after another.
  lines = [line.strip(" │") for line in messages.getvalue().splitlines()[1:]]
  return config, [" ".join(line for line in lines if re.search(r"\w", line))]


def _with_losses_named(
  config: ExperimentConfig, overrides: Sequence[str]
) -> ExperimentConfig:
  """The config with the losses that flags name: tyro knows no new keys."""
  prefix = "--learner.losses."
  named = {
    flag.removeprefix(prefix).partition("=")[0].replace("-", "_")
    for flag in overrides
    if flag.startswith(prefix)
  }
  known = sorted(named.intersection(typing.get_args(LossName)))
  losses = dict.fromkeys(known, 0.0) | config.learner.losses
  learner = dataclasses.replace(config.learner, losses=losses)
  return dataclasses.replace(config, learner=learner)


# The resolved config as JSON.


def to_json(config: ExperimentConfig) -> dict[str, Any]:
  """The config as a JSON object: nested dicts, every field present."""
  return dataclasses.asdict(config)


def from_json(data: Mapping[str, Any]) -> ExperimentConfig:
  """The config that `to_json` made `data` of.

  It is not validated: rules may have changed since it was stored. Fields that
  did not exist then get their defaults.

  Raises:
    UserError: a field is unknown or of the wrong type.
  """
  config, errors = parse(_renamed(_with_losses(data)))
  _raise_all("stored config", list(errors.values()))
  return config


def _with_losses(data: Mapping[str, Any]) -> Mapping[str, Any]:
  """A config stored when each of three losses had a field for its weight."""
  learner = dict(data.get("learner", {}))
  losses = {
    name: learner.pop(f"{name}_weight")
    for name in ("policy", "value", "prm")
    if f"{name}_weight" in learner
  }
  if losses:
    data = {**data, "learner": {**learner, "losses": losses}}
  return data


# Fields that were stored under another name: section, then, now.
_RENAMED = (
  ("learner", "light_lines", "light_steps"),
  ("curriculum", "random_play_share", "related_share"),
)


def _renamed(data: Mapping[str, Any]) -> Mapping[str, Any]:
  """A config stored when some fields had other names."""
  for section, then, now in _RENAMED:
    fields = dict(data.get(section, {}))
    if then in fields:
      fields[now] = fields.pop(then)
      data = {**data, section: fields}
  return data


def claim_run_dir(run_dir: epath.PathLike, config: ExperimentConfig) -> None:
  """Makes the run directory and stores the resolved config in it.

  A directory that holds a run already is continued, see `check_run_dir`.

  Args:
    run_dir: local or in a bucket; made with its parents if missing.
    config: validated.

  Raises:
    UserError: the directory holds a run of another config, or cannot be
      written.
  """
  check_run_dir(run_dir, config)
  path = epath.Path(run_dir) / CONFIG_FILE
  files.make_folder(path.parent)
  files.publish_text(path, json.dumps(to_json(config), indent=2) + "\n")


def check_run_dir(run_dir: epath.PathLike, config: ExperimentConfig) -> None:
  """Holds a config to that of the run in a directory, if there is one.

  Only the mesh may be another one, since it changes where a run computes and
  not what.

  Args:
    run_dir: local or in a bucket.
    config: validated.

  Raises:
    UserError: the directory holds a run of another config.
  """
  path = epath.Path(run_dir) / CONFIG_FILE
  if files.exists(path):
    content = files.read_bytes(path)
    try:
      stored = from_json(json.loads(content))
    except ValueError as error:
      raise UserError(
        f"{path}: cannot be read ({error}); restore the file or use another "
        "run directory"
      ) from error
    old, new = (
      _flatten(to_json(dataclasses.replace(c, mesh=config.mesh)))
      for c in (stored, config)
    )
    changes = [
      f"{key} is {new.get(key)!r}, was {old.get(key)!r}"
      for key in dict.fromkeys([*old, *new])
      if old.get(key) != new.get(key)
    ]
    if changes:
      raise UserError(
        f"{run_dir}: holds a run of another config ({'; '.join(changes)}); "
        f"use another run directory, or go on with {path}"
      )


def _flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in data.items():
    if isinstance(value, Mapping):
      flat |= _flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat
