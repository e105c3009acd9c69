"""`tokzoo plan`: against what a run of the same program reports, and with bad input."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.cli import pods
from tokzoo.cli.experiments import find_recipe, load_experiment
from tokzoo.cli.main import main
from tokzoo.cli.planning import read_mesh
from tokzoo.errors import TokzooError
from tokzoo.machines import CHIPS, is_installed, parse, topologies
from tokzoo.machines.costs import count
from tokzoo.train.mesh import batch_sharding, make_mesh
from tokzoo.train.plan import Assumptions, plan
from tokzoo.train.plan.child import _needed_bytes, _refused
from tokzoo.train.plan.planning import conclude
from tokzoo.train.plan.programs import batch_shapes, lower
from tokzoo.train.plan.roofline import TYPICAL, roofline
from tokzoo.train.plan.search import Candidate, _rank, candidates, pareto
from tokzoo.train.recipe import MeshShape
from tokzoo.train.state import lay_out, make_state
from tokzoo.train.step import make_step

MESH = MeshShape(data=1, fsdp=8)


def recipe_of(name="nano-diffusion", **changes):
  recipe = find_recipe(load_experiment("instella-t2i"), name)
  return dataclasses.replace(recipe, **changes)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
  """The plan of the documented command, through the process that compiles."""
  import contextlib
  import io

  out = io.StringIO()
  with contextlib.redirect_stdout(out):
    command = "plan instella-t2i --recipe nano-diffusion --topology cpu:8 --json"
    settings = "--mesh data=1,fsdp=8 --set batch_size=1024 --price-per-chip-hour 3"
    assert main([*command.split(), *settings.split()]) == 0
  return json.loads(out.getvalue())


@pytest.fixture(scope="module")
def ran():
  """The program of a real run on the same mesh: compiled from its arrays, and run."""
  recipe = recipe_of(mesh=MESH, batch_size=1024)
  mesh = make_mesh(MESH)
  rows = batch_sharding(mesh)
  batch = {
    name: jax.device_put(jnp.zeros(s.shape, s.dtype), rows)
    for name, s in batch_shapes(recipe).items()
  }
  layout = lay_out(recipe, batch, mesh)
  state = make_state(recipe, layout, batch)
  program = make_step(recipe, layout).lower(state, batch).compile()
  new_state, metrics = program(state, batch)
  assert int(new_state.step) == 1 and np.isfinite(float(metrics["loss"]))
  return program


def test_memory_is_that_of_a_real_run(planned, ran):
  memory = ran.memory_analysis()
  assert planned["memory"]["arguments"] == memory.argument_size_in_bytes
  assert planned["memory"]["temporaries"] == memory.temp_size_in_bytes
  kept = memory.output_size_in_bytes - memory.alias_size_in_bytes
  assert planned["memory"]["outputs"] == kept
  assert planned["bytes_per_device"] == sum(planned["memory"].values())
  assert planned["fits"] is True


def test_flops_are_those_of_a_real_run(planned, ran):
  ours = planned["flops_per_device"]
  assert ours == count(ran.as_text(), [0] * 8).flops
  # XLA counts elementwise work too, and this program has no loop.
  theirs = ran.cost_analysis()["flops"]
  assert 0.6 * theirs < ours <= theirs
  assert planned["flops_per_step"] == 8 * ours
  assert planned["flops_per_example"] == 8 * ours / 1024


def test_fsdp_moves_weights_and_not_activations(planned):
  weights = 4 * planned["num_params"]
  # Gathered forward and maybe again backward, and summed; activations are far more.
  assert weights < planned["collective_bytes_per_step"] <= 4 * weights


def test_every_key_of_the_json(planned):
  assert planned["collective_bytes_per_step"] == pytest.approx(
    sum(one["sent"] for one in planned["collectives"])
  )
  seconds = planned["step_seconds_estimate"]
  assert seconds == max(planned["roofline"].values())
  assert planned["examples_per_second"] == pytest.approx(1024 / seconds)
  hours = seconds * recipe_of().steps * 8 / 3600
  assert planned["chip_hours"] == pytest.approx(hours)
  assert planned["cost"] == pytest.approx(3 * hours)
  assert planned["days"] == pytest.approx(hours / 8 / 24)
  assert planned["mesh"] == {"data": 1, "fsdp": 8, "model": 1}
  row = 8 * 4 + 4  # eight words of bits, and a label
  assert planned["host_bytes_per_second"] == pytest.approx(1024 * row / seconds)


def test_the_roofline_by_hand():
  chip = CHIPS["v5e"]
  facts = {
    "flops": 197e12,
    "hbm_bytes": 819e9,
    "collectives": [
      {"sent": 50e9, "crossing": 0.0},
      {"sent": 0.0, "crossing": 25e9 / 8},
    ],
  }
  bounds = roofline(facts, chip, Assumptions(0.5, 0.25, 0.5, 0.125))
  assert dataclasses.astuple(bounds) == pytest.approx((2.0, 4.0, 1.0, 8.0))
  assert (bounds.bound, bounds.seconds) == ("network", pytest.approx(8.0))


@pytest.mark.parametrize(
  ("name", "shape", "chips", "hosts"),
  [
    ("v5e:16x16", (16, 16), 256, 64),
    ("2xv5p:4x4x8", (4, 4, 8), 256, 64),
    ("v6e", (1, 1), 1, 1),
    ("h100:8x4", (8, 4), 32, 4),
    ("a100-80:8x1", (8, 1), 8, 1),
    ("cpu:8", (8,), 8, 1),
  ],
)
def test_topologies_by_name(name, shape, chips, hosts):
  topology = parse(name)
  assert (topology.shape, topology.num_chips, topology.num_hosts) == (
    shape,
    chips,
    hosts,
  )
  assert parse(str(topology)) == topology


@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("v5f:4x4", "did you mean 'v5"),
    ("v5e:16", "2 axes.*near are v5e:4x4"),
    ("v5p:4x4", "3 axes.*near are v5p"),
    ("h100:8", "near are h100:8x1"),
    ("h100:16x2", "a node has 8 GPUs"),
    ("v5e:0x4", "at least 1"),
    ("v5e:fast", "numbers joined by x"),
    ("2xh100:8x1", "only TPUs"),
  ],
)
def test_an_unknown_topology_names_the_nearest(name, said, capsys):
  with pytest.raises(TokzooError, match=said):
    parse(name)
  assert main(["plan", "instella-t2i", "--topology", name]) == 2
  assert capsys.readouterr().err.count("\n") == 1


def test_without_the_compiler_one_sentence_names_the_extra(monkeypatch, capsys):
  monkeypatch.setattr("tokzoo.train.plan.compiling.is_installed", lambda name: False)
  assert main(["plan", "instella-t2i", "--topology", "v5e:2x2"]) == 2
  error = capsys.readouterr().err
  assert "tokzoo[plan]" in error and "libtpu" in error and error.count("\n") == 1


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (["--mesh", "datta=2"], "with the axes data, fsdp, model"),
    (["--set", "batch_size"], "write key=value"),
    (["--set", "batch_sizes=3"], "batch-sizes"),
    (["--recipe", "nanno"], "did you mean"),
    (["--what", "paint"], "paint"),
  ],
)
def test_bad_options_are_one_sentence(arguments, said, capsys):
  assert main(["plan", "instella-t2i", "--topology", "cpu:8", *arguments]) == 2
  error = capsys.readouterr().err
  assert said in error and error.count("\n") == 1


def test_the_list_of_topologies(capsys):
  assert main(["plan", "--list-topologies", "--json"]) == 0
  known = json.loads(capsys.readouterr().out)
  assert set(known) == set(CHIPS)
  for chip in known.values():
    for name in chip["topologies"]:
      assert str(parse(name)) == name


def test_meshes_are_read():
  assert read_mesh("data=32,fsdp=8") == MeshShape(32, 8)
  assert read_mesh("fsdp=8") == MeshShape(-1, 8)


@pytest.mark.parametrize("what", ["encode", "decode", "sample"])
def test_inference_is_lowered_on_the_mesh(what):
  name = "nano-diffusion" if what == "sample" else "nano-digits"
  recipe = recipe_of(name, mesh=MESH, batch_size=16)
  program = lower(recipe, what, make_mesh(MESH))
  text = program.lowered.as_text()
  assert "num_partitions = 8" in text
  assert program.num_params > 0 and program.batch_bytes > 0
  if what == "sample":
    with pytest.raises(TokzooError, match="nothing to encode with"):
      lower(recipe, "encode", make_mesh(MESH))


def test_a_batch_that_the_mesh_cannot_split():
  with pytest.raises(TokzooError, match="cannot be split over 8 devices"):
    lower(recipe_of(batch_size=12), "train", make_mesh(MeshShape()))


def facts_of(**changes):
  memory = {"arguments": 2**30, "outputs": 2**20, "aliased": 2**20}
  memory |= {"temporaries": 0, "code": 0}
  return {
    "mesh": {"data": 4, "fsdp": 1, "model": 1},
    "num_params": 10,
    "batch_bytes": 100,
    "compile_seconds": 1.0,
    "memory": memory,
    "flops": 1e12,
    "hbm_bytes": 1e9,
    "collectives": [],
    "compiler_seconds": None,
    **changes,
  }


def test_what_does_not_fit():
  machine = parse("v5e:2x2")
  recipe = recipe_of()
  made = conclude(recipe, "train", machine, facts_of(), None, TYPICAL)
  assert made.fits and "fits v5e:2x2" in made.summary
  large = facts_of(memory={**facts_of()["memory"], "temporaries": 15 * 2**30})
  made = conclude(recipe, "train", machine, large, None, TYPICAL)
  assert not made.fits and "does not fit" in made.summary and made.flops_per_step
  message = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
    "required for HLO temporaries (19.92G) exceeds available HBM (15.75G)."
  )
  needed = _needed_bytes(message, 2**30)
  assert needed == pytest.approx(20.92 * 2**30)
  assert _needed_bytes("INTERNAL: something else", 0) is None
  refused = {k: v for k, v in facts_of().items() if k != "memory"}
  made = conclude(
    recipe, "train", machine, {**refused, "too_large": needed}, None, TYPICAL
  )
  assert not made.fits and made.bytes_per_device == int(needed)
  assert made.step_seconds_estimate is None and "does not fit" in made.summary


def test_a_machine_without_cuda_is_told_what_to_install():
  for message in (
    "INTERNAL: libdevice not found at ./libdevice.10.bc",
    "INVALID_ARGUMENT: No PTX compilation provider is available. Neither ptxas/nvlink nor "
    "nvjtlink is available.",
  ):
    told = str(_refused("h100:8x1", message))
    assert "nvidia-cuda-nvcc-cu12" in told and '"tokzoo[plan]"' in told
  assert "refuses the program: INTERNAL: odd" in str(
    _refused("v5e:4x4", "INTERNAL: odd")
  )


def test_a_search_ranks_by_speed_and_marks_the_pareto_front():
  recipe, machine = recipe_of(), parse("v5e:2x2")

  def candidate(flops, gib):
    memory = {**facts_of()["memory"], "temporaries": gib * 2**30}
    facts = facts_of(flops=flops, memory=memory)
    return Candidate(recipe, conclude(recipe, "train", machine, facts, None, TYPICAL))

  fast, slow_small, slow, large, none = (
    candidate(1e14, 8),
    candidate(2e14, 2),
    candidate(3e14, 4),
    candidate(1e13, 20),
    Candidate(recipe, None, "why"),
  )
  ranked = sorted([none, slow, large, slow_small, fast], key=_rank)
  assert ranked == [fast, slow_small, slow, large, none]
  assert pareto(ranked) == [True, True, False, False, False]


def test_candidates_split_the_batch_over_all_chips():
  recipe = recipe_of(batch_size=64, remat="blocks")
  found = candidates(recipe, 8, most=100)
  assert len(set(map(repr, found))) == len(found)
  assert found[0].remat == "blocks" and found[0].accumulate == 1
  assert {one.mesh.fsdp for one in found} == {8, 2, 1}
  assert {one.accumulate for one in found} == {1, 2, 4, 8}
  for one in found:
    assert one.mesh.data * one.mesh.fsdp * one.mesh.model == 8
    assert 64 % (8 * one.accumulate) == 0
  assert len(candidates(recipe, 8, most=3)) == 3
  assert not candidates(recipe, 3, most=3)


def test_the_table_goes_between_its_marks(tmp_path, monkeypatch):
  path = tmp_path / "README.md"
  path.write_text("before\n")
  with pytest.raises(TokzooError, match="no place for the table"):
    pods.write_table(path)
  stale = "| instella-t2i `bae-512` | `v5e:16x16` | | stale | | | | |"
  kept = "| other `recipe` | `v5e:16x16` | | kept | | | | |"
  old = "\n".join((*pods.HEAD, stale, kept))
  path.write_text(f"before\n{pods.BEGIN}\n{old}\n{pods.END}\nafter\n")
  planned = []

  def plan(recipe, topology):
    planned.append((recipe.name, topology))
    if recipe.name == "ar-t2i":
      raise TokzooError("it says: this | that.")
    return conclude(recipe, "train", parse(topology), facts_of(), None, TYPICAL)

  monkeypatch.setattr(pods, "plan", plan)
  monkeypatch.setattr(pods, "is_installed", lambda topology: False)
  with pytest.raises(TokzooError, match=r"tokzoo\[plan\]"):
    pods.write_table(path, "instella-t2i")
  monkeypatch.setattr(pods, "is_installed", lambda topology: True)
  assert pods.write_table(path, "instella-t2i", only_missing=True) == 0
  assert len(planned) == 7 and "stale" in path.read_text()
  assert pods.write_table(path, "instella-t2i") == 0
  text = path.read_text()
  assert text.startswith("before\n") and text.endswith("after\n")
  assert text.count(kept) == 1 and "stale" not in text
  for name in ("bae-512", "bae-1024", "ar-t2i", "diffusion-t2i"):
    assert text.count(f"`{name}`") == 2
  assert text.count("refused: it says: this / that.") == 2
  assert "nano" not in text


# ------------------------------------------------------------ machines that are not here

needs_compilers = pytest.mark.skipif(
  not (is_installed("v5e") and is_installed("h100")),
  reason='the compilers are not installed: pip install "tokzoo[plan]"',
)


@pytest.mark.aot
@needs_compilers
def test_an_ordinary_start_is_not_disturbed():
  """The compilers' libraries say at length, past Python, which devices they do not find."""
  environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
  done = subprocess.run(
    [sys.executable, "-m", "tokzoo.cli.main", "list"],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  assert "instella-t2i" in done.stdout and done.stderr == ""


@pytest.mark.aot
@needs_compilers
@pytest.mark.parametrize("topology", ["v5e:2x2", "v4:2x2x1", "h100:4x1", "b200:4x1"])
def test_a_small_recipe_on_a_machine_that_is_not_here(topology):
  made = plan(recipe_of(mesh=MeshShape(1, 4), batch_size=64), topology)
  assert made.fits and made.num_chips == 4
  assert made.step_seconds_estimate and made.flops_per_step
  # Compilers choose programs of their own, but the products are the model's.
  here = recipe_of(mesh=MeshShape(1, 4), batch_size=64)
  mesh = make_mesh(here.mesh, jax.devices()[:4])
  text = lower(here, "train", mesh).lowered.compile().as_text()
  expected = 4 * count(text, [0] * 4).flops
  assert made.flops_per_step == pytest.approx(expected, rel=0.15)


@pytest.mark.aot
@needs_compilers
@pytest.mark.parametrize("topology", ["2xv5e:2x2", "h100:4x2"])
def test_what_crosses_slices_and_nodes(topology):
  made = plan(recipe_of(mesh=MeshShape(2, 4), batch_size=64), topology)
  assert made.collectives
  over = {one["over"]: one["sent"] for one in made.collectives}
  assert set(over) == {"link", "network"}
  crossing = sum(one["crossing"] for one in made.collectives)
  # Over the data axis go the gradients of what a chip keeps, and not much else.
  assert crossing < 4 * made.num_params


@pytest.mark.aot
@needs_compilers
def test_a_size_that_the_compiler_refuses():
  with pytest.raises(TokzooError, match=r"no topology 'v5e:3x7'.*near are"):
    topologies.devices("v5e:3x7")


def test_a_batch_goes_to_the_first_pod_that_can_share_it():
  recipe = recipe_of()
  shared = [
    dataclasses.replace(recipe, batch_size=rows, accumulate=parts)
    for rows, parts in ((256, 1), (144, 1), (96, 1), (64, 4), (7, 1))
  ]
  found = [pods.pod_of(each, pods.PODS[0]) for each in shared]
  assert found == ["h100:8x4", "h100:8x2", "h100:8x4", "h100:8x2", "h100:8x4"]


@pytest.mark.pods
@needs_compilers
@pytest.mark.parametrize(
  "recipe", [pytest.param(recipe, id=recipe.name) for recipe in pods.published()]
)
def test_every_published_recipe_on_a_pod(recipe):
  made = plan(recipe, pods.pod_of(recipe, pods.PODS[0]))
  print(f"\n{made.summary}")
  assert made.bytes_per_device > 0
  assert made.fits, made.summary
