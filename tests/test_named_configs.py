"""The configs of configs/ are valid, and what their names say."""

import pytest

from qstar_jax import configuration, validation

NAMES = sorted(path.stem for path in configuration.configs_dir().glob("*.yaml"))
# Chips that a config is for, where it is not for any machine; and four slices.
NUM_CHIPS = {
  "qwen3_0p6b_v5e16": (16, 64),
  "llama3_8b_v5p128": (64, 256),
}


@pytest.mark.parametrize("name", NAMES)
def test_every_named_config_is_valid_on_the_devices_it_is_for(name):
  config = configuration.load(name)
  assert config.name == name
  for num_devices in NUM_CHIPS.get(name, (1, 8)):
    validation.validate_for_devices(config, num_devices)


@pytest.mark.parametrize(
  ("name", "parameters"),
  [("qwen3_0p6b_v5e16", 0.596e9), ("llama3_8b_v5p128", 7.504e9)],
)
def test_configs_of_pods_have_the_shapes_that_they_are_named_after(
  name, parameters
):
  config = configuration.load(name)
  model = config.model
  heads = (2 * model.num_heads + 2 * model.num_kv_heads) * model.head_dim
  layer = model.model_dim * (heads + 3 * model.ffn_dim)
  # The embedding is tied: Llama 3's own has another matrix for its logits.
  num_embedded = config.text.vocabulary_size * model.model_dim
  # Planned for in full, it has no padding.
  assert config.text.vocabulary_size % model.vocabulary_multiple == 0
  counted = model.num_layers * layer + num_embedded
  assert counted == pytest.approx(parameters, rel=0.002)
