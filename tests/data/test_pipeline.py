"""The loader: order, draws, hosts, resuming, prefetch, and errors from its threads."""

import json
import socket
import subprocess
import sys
import textwrap
import threading

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from tests.data.pictures import encoded, picture, write_class_folder
from tokzoo.data import (
  DataConfig,
  evaluation_batches,
  host_rows,
  loader,
  state_after,
)
from tokzoo.data.sources import open_source
from tokzoo.errors import TokzooError

DIGITS = DataConfig(source="digits", split="test", channels=1, threads=2)
NUM_DIGITS = 355


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
  """13 flat grey pictures whose brightness is their number."""
  root = tmp_path_factory.mktemp("numbered")
  for number in range(13):
    image = np.full((6, 9), 10 * number, np.uint8)
    (root / f"{number:02d}.png").write_bytes(encoded(image))
  return DataConfig(
    source=f"folder:{root}", channels=1, size=4, crop="random", threads=2
  )


def numbers(batch) -> list[int]:
  return np.rint((batch["image"][:, 0, 0, 0] + 1) * 12.75).astype(int).tolist()


def take(batches, count: int):
  """The next `count` batches, one after another along the rows."""
  taken = [next(batches) for _ in range(count)]
  return {name: np.concatenate([batch[name] for batch in taken]) for name in taken[0]}


def assert_same(found, wanted):
  assert found.keys() == wanted.keys()
  for name, array in wanted.items():
    assert found[name].dtype == array.dtype
    np.testing.assert_array_equal(found[name], array)


# Order.


def test_every_epoch_is_a_new_permutation(numbered):
  batches = loader(numbered, 13, seed=3)
  epochs = [numbers(next(batches)) for _ in range(20)]
  batches.close()
  assert all(sorted(epoch) == list(range(13)) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 20
  # Every record is found at many places, not only near its own.
  assert len({epoch.index(0) for epoch in epochs}) > 6


@given(size=st.integers(1, 13), repeat=st.integers(1, 3), seed=st.integers(0, 2**63))
@settings(max_examples=15, deadline=None)
def test_views_count_alike_whatever_the_batch(numbered, size, repeat, seed):
  config = DataConfig(**{**vars(numbered), "repeat": repeat, "threads": 0})
  batches = list(loader(config, size, seed, epochs=size))
  seen = np.concatenate([numbers(batch) for batch in batches])
  assert len(seen) == 13 * repeat * size
  for epoch in seen.reshape(size, -1):
    np.testing.assert_array_equal(np.bincount(epoch, minlength=13), [repeat] * 13)


def test_seed_and_shuffle(numbered):
  def first(config, seed):
    with_seed = loader(config, 13, seed)
    return take(with_seed, 2)

  assert_same(first(numbered, 5), first(numbered, 5))
  assert numbers(first(numbered, 5)) != numbers(first(numbered, 6))
  plain = DataConfig(**{**vars(numbered), "shuffle": False})
  assert numbers(first(plain, 5)) == [*range(13), *range(13)]


def test_neighbouring_seeds_share_no_epoch():
  # With seed + epoch as the key, epoch 1 of seed 0 would be epoch 0 of seed 1.
  first = take(loader(DIGITS, NUM_DIGITS, seed=0), 3)["label"].reshape(3, -1)
  second = take(loader(DIGITS, NUM_DIGITS, seed=1), 3)["label"].reshape(3, -1)
  assert not any((one == other).all() for one in first for other in second)


def test_views_of_a_record_are_drawn_anew():
  config = DataConfig(
    source="photos", split="test", size=8, crop="random", flip=True, repeat=20
  )
  first = take(loader(config, 60, seed=0), 1)["image"]
  assert len(np.unique(first.reshape(60, -1), axis=0)) > 55
  # Draws depend on the view, not on the thread or the size of the batch.
  assert_same(take(loader(config, 15, seed=0), 4), {"image": first})
  in_order = DataConfig(**{**vars(config), "shuffle": False})
  one, other = (take(loader(in_order, 60, seed), 1)["image"] for seed in (0, 1))
  assert (one != other).any(axis=(1, 2, 3)).sum() > 55


def test_ten_views_are_each_seen_once_an_epoch():
  config = DataConfig(
    source="photos", split="test", resize=20, size=16, crop="ten", repeat=10
  )
  count = len(open_source(config))
  ordered = take(evaluation_batches(config, count), 10)["image"]
  views = ordered.reshape(10, count, *ordered.shape[1:])
  assert np.array_equal(views[:5, :, :, ::-1], views[5:])
  shuffled = take(loader(config, count, seed=3, epochs=1), 10)["image"]
  rows = [np.unique(x.reshape(len(x), -1), axis=0) for x in (ordered, shuffled)]
  assert np.array_equal(*rows)


def test_arrays(numbered):
  batch = next(loader(DIGITS, 16, seed=0))
  assert batch["image"].dtype == np.float32 and batch["image"].shape == (16, 8, 8, 1)
  assert batch["label"].dtype == np.int32 and batch["label"].shape == (16,)
  assert batch["image"].min() == -1 and batch["image"].max() <= 1
  assert next(loader(numbered, 2, seed=0)).keys() == {"image"}


# Hosts and resuming.


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_hosts_together_make_what_one_makes(numbered, hosts):
  whole = take(loader(numbered, 16, seed=1), 5)["image"].reshape(5, 16, 4, 4, 1)
  each = 16 // hosts
  parts = [
    take(loader(numbered, 16, seed=1, rows=slice(i * each, (i + 1) * each)), 5)["image"]
    for i in range(hosts)
  ]
  together = np.concatenate([part.reshape(5, each, 4, 4, 1) for part in parts], axis=1)
  np.testing.assert_array_equal(together, whole)


def test_resuming_on_other_numbers_of_hosts():
  """4 hosts stop, 2 go on, then 8, each with other threads: as one that never stopped."""
  whole = take(loader(DIGITS, 64, seed=9), 15)
  found, state = [], None
  for hosts, threads in ((4, 0), (2, 3), (8, 1)):
    each = 64 // hosts
    config = DataConfig(**{**vars(DIGITS), "threads": threads})
    iterators = [
      loader(config, 64, seed=9, rows=slice(i * each, (i + 1) * each))
      for i in range(hosts)
    ]
    if state is not None:
      for iterator in iterators:
        iterator.set_state(json.loads(state))
    for _ in range(5):
      parts = [next(iterator) for iterator in iterators]
      found.append({k: np.concatenate([part[k] for part in parts]) for k in whole})
    states = {json.dumps(iterator.get_state()) for iterator in iterators}
    assert states == {json.dumps(state_after(len(found)))}  # the same on every host
    state = states.pop()
  assert_same({k: np.concatenate([part[k] for part in found]) for k in whole}, whole)


@given(
  parts=st.lists(
    st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(1, 5)), min_size=2, max_size=5
  ),
  seed=st.integers(0, 2**32),
)
@example(parts=[(4, 3), (2, 5), (8, 4)], seed=0)
@settings(max_examples=4, deadline=None)
def test_any_change_of_hosts_sees_every_record_once(numbered, parts, seed):
  """Killed in the middle of an epoch and continued on other numbers of hosts, again and
  again: every epoch is a permutation of the records, and no view comes twice."""
  config = DataConfig(**{**vars(numbered), "threads": 0})
  seen, state = [], None
  for hosts, steps in [*parts, (1, 13)]:
    each = 8 // hosts
    iterators = [
      loader(config, 8, seed, slice(host * each, (host + 1) * each))
      for host in range(hosts)
    ]
    for iterator in iterators:
      if state is not None:
        iterator.set_state(json.loads(state))
    for _ in range(steps):
      for iterator in iterators:
        seen += numbers(next(iterator))
    # Host 0 may have stopped anywhere; any host's state is everybody's.
    state = json.dumps(iterators[-1].get_state())
  whole = len(seen) // 13 * 13
  assert whole >= 104
  for epoch in np.array(seen[:whole]).reshape(-1, 13):
    assert sorted(epoch) == list(range(13))
  straight = loader(config, 8, seed)
  assert seen == [n for _ in range(len(seen) // 8) for n in numbers(next(straight))]


@given(done=st.integers(0, 30), ahead=st.integers(0, 8), threads=st.integers(0, 3))
@settings(max_examples=10, deadline=None)
def test_resuming_mid_epoch(numbered, done, ahead, threads):
  config = DataConfig(**{**vars(numbered), "threads": threads, "prefetch": ahead})
  batches = loader(config, 5, seed=2)
  for _ in range(done):
    next(batches)
  state = json.dumps(batches.get_state())
  wanted = take(batches, 4)
  resumed = loader(config, 5, seed=2)
  resumed.set_state(json.loads(state))
  assert_same(take(resumed, 4), wanted)


def test_rows_of_a_host():
  devices = np.array(jax.devices()).reshape(2, 2, 2)
  mesh = Mesh(devices, ("data", "fsdp", "model"))
  assert host_rows(mesh, 32) == slice(0, 32)  # one process has all devices
  assert host_rows(Mesh(devices.reshape(8), ("data",)), 8) == slice(0, 8)
  assert host_rows(Mesh(devices.reshape(8), ("model",)), 3) == slice(0, 3)
  words = r"batch of 30 .* 4 parts of the mesh \(data 2 x fsdp 2\): .*multiple of 4"
  with pytest.raises(TokzooError, match=words):
    host_rows(mesh, 30)


def test_rows_of_two_processes():
  """Two real processes with four devices each; nothing is computed, only asked."""
  program = textwrap.dedent(
    """
    import json, sys
    import jax, numpy as np
    from jax.sharding import Mesh
    jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
    from tokzoo.data import host_rows
    from tokzoo.errors import TokzooError

    devices = np.array(jax.devices())
    def rows(array):
      mesh = Mesh(array, ("data", "fsdp", "model"))
      try:
        found = host_rows(mesh, 16)
      except TokzooError as error:
        return str(error)
      assert host_rows(mesh, 16, process=jax.process_index()) == found
      return [found.start, found.stop]

    shapes = ((8, 1, 1), (2, 4, 1), (2, 1, 4), (1, 1, 8), (1, 4, 2))
    found = [rows(devices.reshape(shape)) for shape in shapes]
    # Model parallel across the hosts: both need every row.
    found.append(rows(devices.reshape(2, 4).T.reshape(4, 1, 2)))
    # Devices of the two hosts in turn along the batch.
    found.append(rows(devices.reshape(2, 4).T.reshape(8, 1, 1)))
    print(json.dumps(found))
    """
  )
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  environment = {"JAX_PLATFORMS": "cpu", "PATH": "", "HOME": "/nonexistent"}
  environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", program, address, str(process)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      env=environment,
      text=True,
    )
    for process in range(2)
  ]
  try:
    results = [process.communicate(timeout=120) for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [0, 0], results[0][1][-2000:]
  first, second = (json.loads(out.splitlines()[-1]) for out, _ in results)
  half = [[0, 8], [8, 16]]
  assert first[:3] == [half[0]] * 3 and second[:3] == [half[1]] * 3
  assert first[3] == second[3] == [0, 16]
  assert first[4] == half[0] and second[4] == half[1]
  assert first[5] == second[5] == [0, 16]
  for message in (first[6], second[6]):
    assert "rows of the batch that do not lie side by side" in message


# Evaluation.


@pytest.mark.parametrize("size, count", [(5, 3), (13, 1), (20, 1)])
def test_evaluation_sees_every_record_once(numbered, size, count):
  batches = list(evaluation_batches(numbered, size))
  assert len(batches) == count
  assert all(len(batch["image"]) == len(batch["valid"]) == size for batch in batches)
  seen = [
    number
    for batch in batches
    for number, valid in zip(numbers(batch), batch["valid"])
    if valid
  ]
  assert seen == list(range(13))
  for batch in batches:
    assert batch["valid"].dtype == np.bool_
  filling = ~batches[-1]["valid"]
  assert {*np.array(numbers(batches[-1]))[filling]} <= {12}  # copies of the last record


def test_evaluation_on_several_hosts(numbered):
  whole = list(evaluation_batches(numbered, 16))
  parts = [
    list(evaluation_batches(numbered, 16, rows=slice(i, i + 4)))
    for i in range(0, 16, 4)
  ]
  together = {
    name: np.concatenate([part[0][name] for part in parts]) for name in whole[0]
  }
  assert_same(together, whole[0])
  assert not parts[3][0]["valid"][1:].any()


def test_some_batches_of_an_evaluation():
  assert len(list(evaluation_batches(DIGITS, 100))) == 4
  assert len(list(evaluation_batches(DIGITS, 100, batches=2))) == 2
  assert len(list(evaluation_batches(DIGITS, 100, batches=9))) == 4


# Mistakes and threads.


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_in_a_thread_reaches_the_caller(tmp_path, threads):
  root = write_class_folder(tmp_path / "set", 6)
  (root / "bee" / "04.png").write_bytes(b"broken")
  config = DataConfig(source=f"folder:{root}", threads=threads)
  with pytest.raises(TokzooError, match=r"bee/04\.png.*not an image"):
    take(loader(config, 2, seed=0), 3)
  with pytest.raises(TokzooError, match=r"bee/04\.png.*not an image"):
    list(evaluation_batches(config, 4))


def test_pictures_of_several_sizes(tmp_path):
  (tmp_path / "a.png").write_bytes(encoded(picture(0, 20, 24)))
  (tmp_path / "b.png").write_bytes(encoded(picture(0, 30, 24)))
  config = DataConfig(source=f"folder:{tmp_path}")
  with pytest.raises(
    TokzooError, match=r"differ in size \(20 x 24 and 30 x 24 pixels\)"
  ):
    next(loader(config, 2, seed=0))


def test_numbers_that_do_not_fit(numbered):
  with pytest.raises(TokzooError, match="1 epochs of 13 views hold no batch of 14"):
    loader(numbered, 14, seed=0, epochs=1)
  with pytest.raises(TokzooError, match="batch of 0"):
    evaluation_batches(numbered, 0)
  with pytest.raises(TokzooError, match="seed is -1"):
    loader(numbered, 4, seed=-1)
  with pytest.raises(TokzooError, match=r"130000000000 views .* at most"):
    loader(DataConfig(**{**vars(numbered), "repeat": 10**10}), 4, seed=0)
  with pytest.raises(TokzooError, match=r"data.repeat is 0"):
    loader(DataConfig(repeat=0), 4, seed=0)
  with pytest.raises(TokzooError, match=r"data.size is not set"):
    loader(DataConfig(crop="center"), 4, seed=0)


def test_closing_ends_the_threads():
  def prefetching():
    return {t for t in threading.enumerate() if t.name.startswith("grain-prefetch")}

  before = prefetching()
  batches = loader(DIGITS, 8, seed=0)
  next(batches)
  mine = prefetching() - before
  assert len(mine) == 2
  batches.close()
  for thread in mine:
    thread.join(timeout=10)
  assert not any(thread.is_alive() for thread in mine)
