"""Checkpoints: digests, damage, full disks, other meshes, retention."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.train.tasks import AutoEncoder, Linear, Rows, held_out, make_recipe
from tokzoo.errors import TokzooError
from tokzoo.train import MeshShape, load_run, make_mesh, train
from tokzoo.train.checkpoint import Checkpoints
from tokzoo.train.digest import digest, host_digest


def one_device():
  return make_mesh(MeshShape(), jax.devices()[:1])


def go(recipe, out, mesh=None, **more):
  """Trains on one device, quietly."""
  return train(
    recipe,
    out,
    mesh=mesh or one_device(),
    batches=Rows(recipe.batch_size),
    evaluations={name: held_out(recipe.batch_size) for name in recipe.evaluators},
    progress=False,
    **more,
  )


def arrays_of(out):
  """All arrays of the newest whole checkpoint, and its JSON."""
  checkpoints = Checkpoints(Path(out) / "checkpoints", read_only=True)
  try:
    return checkpoints.load(lambda names: names)
  finally:
    checkpoints.close()


def assert_same_bits(left, right):
  assert left.keys() == right.keys()
  for name, array in left.items():
    np.testing.assert_array_equal(array, right[name], err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (0, 3), (16, 24), (8, 3, 5)])
def test_the_digest_is_the_same_wherever_the_array_lies(dtype, shape):
  values = np.random.default_rng(0).integers(-9, 9, shape)
  array = np.asarray(values).astype(jnp.dtype(dtype))
  expected = host_digest(array)
  mesh = make_mesh(MeshShape(2, 2, 2))
  specs = [P()] if len(shape) < 2 else [P(), P("fsdp"), P(("data", "fsdp", "model"))]
  for spec in specs:
    if shape and shape[0] % 8 and spec != P():
      continue
    placed = jax.device_put(array, NamedSharding(mesh, spec))
    found = jax.jit(digest, out_shardings=NamedSharding(mesh, P()))(placed)
    assert tuple(int(half) for half in found) == expected, spec


def test_the_digest_sees_every_flipped_bit_and_every_swap():
  array = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
  expected = host_digest(array)
  for bit in range(array.size * 32):
    changed = array.copy()
    changed.view(np.uint32).reshape(-1)[bit // 32] ^= np.uint32(1 << (bit % 32))
    assert host_digest(changed) != expected
  assert host_digest(array[::-1]) != expected
  assert host_digest(array.T) != expected


def test_saved_on_eight_devices_restored_on_one_two_and_four(tmp_path):
  recipe = make_recipe(
    task=Linear(AutoEncoder(hidden=64)), steps=4, save_every=4, ema=0.9, evaluators={}
  )
  first = tmp_path / "eight"
  go(recipe, first, make_mesh(MeshShape(2, 2, 2)))
  expected = None
  for shape in (MeshShape(1), MeshShape(1, 2), MeshShape(2, 2)):
    devices = jax.devices()[: shape.data * shape.fsdp * shape.model]
    mesh = make_mesh(shape, devices)
    out = tmp_path / f"on{len(devices)}"
    shutil.copytree(first, out)
    losses = []
    result = go(
      dataclasses.replace(recipe, steps=8, log_every=1),
      out,
      mesh,
      on_log=lambda step, split, values, losses=losses: losses.append(
        (step, values["loss"])
      ),
    )
    assert result.step == 8
    assert [step for step, _ in losses] == [5, 6, 7, 8]
    values = np.array([loss for _, loss in losses])
    expected = values if expected is None else expected
    np.testing.assert_allclose(values, expected, rtol=1e-4)
    kernel = result.variables["params"]["encoder"]["kernel"]
    assert kernel.sharding.mesh.devices.size == len(devices)


def test_retention_keeps_the_newest(tmp_path):
  go(make_recipe(steps=10, save_every=2, keep=3), tmp_path)
  names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
  assert names == ["00000006", "00000008", "00000010"]


def test_the_older_one_stays_until_the_newer_is_read_back(tmp_path, monkeypatch):
  recipe = make_recipe(steps=8, save_every=4, keep=1)
  real = Checkpoints._read_back
  seen = []

  def spy(self, step, layout):
    seen.append((step, self.steps()))
    return real(self, step, layout)

  monkeypatch.setattr(Checkpoints, "_read_back", spy)
  go(recipe, tmp_path)
  assert seen == [(4, [4]), (8, [4, 8])]
  assert arrays_of(tmp_path)[1]["step"] == 8
  assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["00000008"]


def test_a_save_that_reads_back_differently_stops_the_run(tmp_path, monkeypatch):
  recipe = make_recipe(steps=12, save_every=4, keep=1)
  real = Checkpoints._read_back

  def rot(self, step, layout):
    if step == 8:
      corrupt(self.folder / "00000008")
    return real(self, step, layout)

  monkeypatch.setattr(Checkpoints, "_read_back", rot)
  with pytest.raises(
    TokzooError, match=r"checkpoint 8 could not be saved .*checkpoint 4"
  ):
    go(recipe, tmp_path)
  monkeypatch.undo()
  with pytest.warns(UserWarning, match="checkpoint 8 is damaged"):
    assert go(recipe, tmp_path).step == 12


def corrupt(folder: Path):
  """Flips a bit in every eighth byte of the data: a single one may be of no account."""
  for path in folder.rglob("d/*"):
    data = bytearray(path.read_bytes())
    data[::8] = bytes(byte ^ 8 for byte in data[::8])
    path.write_bytes(bytes(data))


def flip(path: Path, where: float, bit: int = 3):
  data = bytearray(path.read_bytes())
  data[int(where * (len(data) - 1))] ^= 1 << bit
  path.write_bytes(bytes(data))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
  """A run with checkpoints at 4 and 8, to be copied and damaged."""
  out = tmp_path_factory.mktemp("whole")
  go(make_recipe(steps=8, save_every=4), out)
  return out


def newest_files(out: Path) -> list[Path]:
  return sorted(p for p in (out / "checkpoints/00000008").rglob("*") if p.is_file())


@pytest.mark.parametrize("how", ["truncate", "empty", "remove", "flip"])
def test_damage_anywhere_is_named_or_harmless(whole_run, tmp_path, how):
  """Every file of the newest checkpoint in turn: either it is skipped and named, or what is
  read is bit for bit what was saved."""
  good = {}
  for step in (8, 4):
    folder = tmp_path / f"good{step}"
    shutil.copytree(whole_run, folder)
    if step == 4:
      shutil.rmtree(folder / "checkpoints/00000008")
    good[step] = arrays_of(folder)[0]
  found = {4: 0, 8: 0}
  for index, path in enumerate(newest_files(whole_run)):
    out = tmp_path / f"{how}{index}"
    shutil.copytree(whole_run, out)
    victim = out / path.relative_to(whole_run)
    size = victim.stat().st_size
    if how == "truncate":
      os.truncate(victim, size // 2)
    elif how == "empty":
      os.truncate(victim, 0)
    elif how == "remove":
      victim.unlink()
    elif size:
      flip(victim, (index % 7) / 6, index % 8)
    arrays, about = arrays_of(out)
    assert_same_bits(arrays, good[about["step"]])
    found[about["step"]] += 1
  assert found[4] >= 3, found  # data, description and metadata at least


def test_a_run_continues_from_the_last_good_checkpoint(whole_run, tmp_path):
  out = tmp_path / "run"
  shutil.copytree(whole_run, out)
  recipe = make_recipe(steps=12, save_every=4)
  straight = go(recipe, tmp_path / "straight")
  corrupt(out / "checkpoints/00000008")
  with pytest.warns(UserWarning, match="checkpoint 8 is damaged .* moved to .*damaged"):
    result = go(recipe, out)
  assert result.step == straight.step == 12
  assert (out / "damaged/00000008").is_dir()
  for step in ("00000008", "00000012"):
    corrupt(out / "checkpoints" / step)
  with pytest.raises(TokzooError, match=r"no checkpoint .* is whole .*12: .*8: "):
    go(dataclasses.replace(recipe, steps=16), out)
  with pytest.raises(TokzooError, match=r"no checkpoint .* is whole"):
    load_run(out)


def test_values_changed_behind_the_codecs_back_are_seen_by_the_digest(
  whole_run, tmp_path
):
  # A checkpoint that Orbax itself reads without complaint, with one value changed.
  import orbax.checkpoint as ocp

  out = tmp_path / "run"
  shutil.copytree(whole_run, out)
  arrays, _ = arrays_of(out)
  name = "params/encoder/kernel"
  arrays[name] = arrays[name].copy()
  arrays[name].view(np.uint32)[0, 0] ^= 1
  place = out / "checkpoints/00000008/state"
  shutil.rmtree(place)
  with ocp.PyTreeCheckpointer() as writer:
    writer.save(place.absolute(), arrays)
  (place / "commit_success.txt").touch()
  assert arrays_of(out)[1]["step"] == 4
  with pytest.warns(UserWarning, match=f"8 is damaged .{name} does not agree"):
    go(make_recipe(steps=8, save_every=4), out)


FULL = """
import resource, signal, sys, time
from pathlib import Path
from tests.train.test_checkpoint import go
from tests.train.tasks import AutoEncoder, Linear, make_recipe
from tokzoo.errors import TokzooError

out, how = Path(sys.argv[1]), sys.argv[2]
recipe = make_recipe(task=Linear(AutoEncoder(hidden=96)), steps=12, save_every=4)

def fill(step, split, values):
  if step != 8:  # the log of step 8 is written just before it is saved
    return
  while how != "room again" and not (out / "checkpoints/00000004").exists():
    time.sleep(0.01)  # saves go on in the background
  if how == "limit":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
  elif how == "fill":
    try:
      with open(out / "filler", "wb", buffering=0) as file:
        while file.write(bytes(4096)):
          pass
    except OSError:
      pass

try:
  print("DONE", go(recipe, out, on_log=fill).step)
except TokzooError as error:
  print("STOPPED", error)
"""


def run_while_the_disk_fills(out, how):
  """The last line that a run printed whose disk fills at step 8."""
  cache = jax.config.jax_compilation_cache_dir
  told = subprocess.run(
    [sys.executable, "-c", FULL, str(out), how],
    capture_output=True,
    text=True,
    timeout=200,
    cwd=Path(__file__).parents[2],
    env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)},
  )
  assert "Traceback" not in told.stderr, told.stderr
  return told.stdout.strip().splitlines()[-1]


def test_a_file_that_may_not_grow_stops_the_run_with_the_reason(tmp_path):
  told = run_while_the_disk_fills(tmp_path, "limit")
  assert told.startswith("STOPPED checkpoint 8 could not be saved (File too large)")
  assert "checkpoint 4" in told and "is intact" in told
  assert not list((tmp_path / "checkpoints").glob("*tmp*"))
  assert arrays_of(tmp_path)[1]["step"] == 4
  assert run_while_the_disk_fills(tmp_path, "room again") == "DONE 12"


def test_a_full_disk_stops_the_run_with_the_reason(tmp_path):
  mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(tmp_path)]
  if subprocess.run(mount, capture_output=True).returncode:
    pytest.skip("this machine lets nobody mount a small disk")
  try:
    told = run_while_the_disk_fills(tmp_path, "fill")
    assert told.startswith("STOPPED checkpoint 8 could not be saved (No space left on")
    assert arrays_of(tmp_path)[1]["step"] == 4
    (tmp_path / "filler").unlink()
    assert run_while_the_disk_fills(tmp_path, "room again") == "DONE 12"
  finally:
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)
