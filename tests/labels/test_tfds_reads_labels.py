"""What others need to read our labels: tensorflow_datasets, nothing else."""

import numpy as np

from qstar_jax.labels import codec
from qstar_jax.store.writer import StoreWriter

pytest_plugins = ["tests.store.tfds_process"]


def test_labels_of_two_processes(tmp_path, make_line, read_with_tfds, as_array):
  lines = [make_line(i, num_steps=1 + i % 4) for i in range(9)]
  folders = []
  for process in range(2):
    with StoreWriter(tmp_path, codec.LINES, process, shard_records=3) as writer:
      writer.extend(lines[process::2])
      folders.append(writer.folder)
  read = read_with_tfds(*folders)
  read.sort(key=lambda fields: fields["origin"])
  for fields, line in zip(read, lines, strict=True):
    for name in (*codec.TEXTS, *codec.INTEGERS, "is_finished"):
      assert fields[name] == getattr(line, name)
    assert fields["steps"] == list(line.steps)
    label = as_array(fields["label"])
    assert label.dtype == np.float32
    np.testing.assert_array_equal(label, line.label)
