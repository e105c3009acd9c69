"""Weight files: safetensors and checkpoints whole or refused; nothing is ever unpickled."""

import argparse
import pickle
import zipfile

import numpy as np
import pytest

from tests.models import TOKENIZER, random_variables, save
from tokzoo.errors import TokzooError
from tokzoo.files import write_atomic
from tokzoo.weights import fingerprint, read_state, write_safetensors
from tokzoo.weights.checkpoint import read_checkpoint, write_checkpoint


class Evil:
  """A pickle of this leaves a file behind when it is opened."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return (open, (str(self.path), "w"))


def test_safetensors_come_back(tmp_path):
  arrays = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not in memory's order
    "half": np.ones((2,), np.float16),
    "scalar": np.float32(3.5),
    "ids": np.array([1, 2], np.int64),
  }
  write_safetensors(tmp_path / "w.safetensors", arrays)
  state = read_state(tmp_path / "w.safetensors")
  assert set(state) == set(arrays)
  for key, array in arrays.items():
    assert state[key].dtype == array.dtype and state[key].shape == np.shape(array)
    np.testing.assert_array_equal(state[key], array)


def test_a_pickle_under_the_name_of_safetensors_is_not_opened(tmp_path):
  trace = tmp_path / "opened"
  bare = tmp_path / "bare.safetensors"
  bare.write_bytes(pickle.dumps(Evil(trace)))
  archive = tmp_path / "archive.safetensors"
  with zipfile.ZipFile(archive, "w") as file:
    file.writestr("data.pkl", pickle.dumps(Evil(trace)))
  for path in (bare, archive):
    for read in (read_state, read_checkpoint):
      with pytest.raises(TokzooError, match="is a pickle, not a safetensors"):
        read(path)
  assert not trace.exists()


def test_files_that_are_no_weights(tmp_path):
  with pytest.raises(TokzooError, match="no weight file at"):
    read_state(tmp_path / "missing.safetensors")
  (tmp_path / "w.h5").write_bytes(b"x")
  with pytest.raises(TokzooError, match=r"ending '\.h5'; weights are read from"):
    read_state(tmp_path / "w.h5")
  (tmp_path / "empty.safetensors").write_bytes(b"")
  with pytest.raises(TokzooError, match="not a whole weight file"):
    read_state(tmp_path / "empty.safetensors")


def test_torch_is_asked_for_where_it_is_not_installed(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "torch", None)
  (tmp_path / "w.pt").write_bytes(b"x")
  with pytest.raises(TokzooError, match=r'"tokzoo\[torch\]"'):
    read_state(tmp_path / "w.pt")


@pytest.mark.torch
def test_torch_files_hold_tensors_and_nothing_else(tmp_path):
  import torch

  state = {"a": torch.arange(3.0), "half": torch.ones(2, dtype=torch.bfloat16)}
  for ending in (".pt", ".pth", ".bin", ".ckpt", ".dev"):
    path = tmp_path / f"w{ending}"
    torch.save({"module": state, "step": 3}, path)
    read = read_state(path, "module")
    np.testing.assert_array_equal(read["a"], np.arange(3, dtype=np.float32))
    assert read["half"].dtype == np.float32 and read["half"].tolist() == [1, 1]
  with pytest.raises(TokzooError, match="has no entry 'state_dict'; it holds"):
    read_state(path, "state_dict")
  with pytest.raises(TokzooError, match="holds 'module', a dict instead of a tensor"):
    read_state(path)
  torch.save([1, 2], path)
  with pytest.raises(TokzooError, match="holds a list, not weights by name"):
    read_state(path)


@pytest.mark.torch
def test_a_malicious_pickle_does_not_run(tmp_path):
  import torch

  trace = tmp_path / "opened"
  # The test itself is sound: an ordinary unpickling does leave the trace.
  pickle.loads(pickle.dumps(Evil(trace))).close()
  assert trace.exists()
  trace.unlink()
  torch.save({"module": Evil(trace)}, tmp_path / "zip.pt")
  torch.save(Evil(trace), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
  (tmp_path / "bare.ckpt").write_bytes(pickle.dumps(Evil(trace)))
  for name in ("zip.pt", "old.pt", "bare.ckpt"):
    with pytest.raises(TokzooError, match="weights-only loader refuses") as caught:
      read_state(tmp_path / name)
    assert "\n" not in str(caught.value)
  assert not trace.exists()


@pytest.mark.torch
def test_options_beside_the_weights(tmp_path):
  import torch

  path, options = tmp_path / "w.pth", argparse.Namespace(lr=1e-4, blocks=[1, 2])
  torch.save({"ema": {"a": torch.arange(3)}, "args": options}, path)
  np.testing.assert_array_equal(read_state(path, "ema")["a"], [0, 1, 2])


@pytest.mark.torch
def test_a_torch_file_cut_short_is_named(tmp_path):
  import torch

  path = tmp_path / "w.pt"
  torch.save({"a": torch.arange(100.0)}, path)
  path.write_bytes(path.read_bytes()[:-60])
  with pytest.raises(TokzooError, match=r"refuses .*w\.pt"):
    read_state(path)


def test_a_checkpoint_comes_back(tmp_path):
  path = save(tmp_path / "m.safetensors", TOKENIZER, tile=True, note="Ü [x]")
  variables, header = read_checkpoint(path)
  assert fingerprint(variables) == fingerprint(random_variables(TOKENIZER))
  assert header["system"] == "instella-t2i" and header["part"] == "tokenizer"
  assert header["tile"] is True and header["note"] == "Ü [x]"
  assert header["config"]["width"] == TOKENIZER.width


def test_a_checkpoint_changed_or_cut_anywhere_is_refused(tmp_path):
  path = tmp_path / "m.safetensors"
  write_checkpoint(
    path, {"params": {"w": np.arange(4, dtype=np.float32)}}, {"config": {"width": 4}}
  )
  whole = path.read_bytes()
  for place in range(len(whole)):
    for bit in {place % 8, 5}:
      damaged = bytearray(whole)
      damaged[place] ^= 1 << bit
      path.write_bytes(damaged)
      with pytest.raises(TokzooError) as caught:
        read_checkpoint(path)
      assert str(path) in str(caught.value) and "\n" not in str(caught.value)
  for length in range(len(whole)):
    path.write_bytes(whole[:length])
    with pytest.raises(TokzooError, match="not a whole checkpoint"):
      read_checkpoint(path)


def test_other_safetensors_are_no_checkpoint(tmp_path):
  path = tmp_path / "authors.safetensors"
  write_safetensors(path, {"w": np.zeros(2)})
  with pytest.raises(
    TokzooError, match=r"not tokzoo's own checkpoint format.*--preset"
  ):
    read_checkpoint(path)


def test_a_newer_checkpoint_asks_for_an_upgrade(tmp_path, monkeypatch):
  monkeypatch.setattr("tokzoo.weights.checkpoint.VERSION", 10)
  path = save(tmp_path / "m.safetensors", TOKENIZER)
  monkeypatch.setattr("tokzoo.weights.checkpoint.VERSION", 9)
  with pytest.raises(
    TokzooError, match=r"format 10, this tokzoo reads up to 9: upgrade"
  ):
    read_checkpoint(path)


def test_writing_is_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / "file"
  write_atomic(path, b"before")

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("os.fsync", full)
  with pytest.raises(TokzooError, match="No space left on device; free some space"):
    write_atomic(path, b"after")
  assert path.read_bytes() == b"before"
  assert [p.name for p in tmp_path.iterdir()] == ["file"]
