"""`tokzoo launch`: what it renders, by the tools' own parsers; what it refuses; what it runs."""

import dataclasses
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tokzoo.cli import launching
from tokzoo.cli.main import main
from tokzoo.errors import TokzooError
from tokzoo.launch import Job, Local, QueuedResource, SkyPilot, Slurm, Xpk
from tokzoo.launch.watch import watch
from tokzoo.machines import parse
from tokzoo.train.hosts import LOST, Hosts, find_lost

WORDS = ("tokzoo", "train", "my system.py", "--recipe", "r", "--out", "runs/it's")


def job(topology: str, processes: int | None = None, **more) -> Job:
  machine = parse(topology)
  count = machine.num_hosts if processes is None else processes
  return Job("a-job", WORDS, machine, count, Path("launch/a-job"), **more)


def text_of(rendered, name: str) -> str:
  return rendered.files[Path("launch/a-job") / name]


def directives(text: str) -> dict[str, str]:
  """The options of a batch script."""
  found = re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.M)
  return dict(found)


SCHEDULERS = {
  "slurm": (Slurm(partition="gpu", time="24:00:00"), "h100:8x4"),
  "skypilot-gpu": (SkyPilot(infra="aws", spot=True), "a100-80:8x2"),
  "skypilot-tpu": (SkyPilot(bucket="gs://mine"), "v6e:8x8"),
  "xpk": (Xpk(cluster="c", zone="z"), "2xv5p:4x4x8"),
  "queued-resource": (QueuedResource(zone="z", spot=True), "2xv4:4x4x4"),
  "queued-resource-one": (QueuedResource(zone="z", project="p"), "v5e:16x16"),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scripts_are_sound_and_hold_no_secret(name, tmp_path, monkeypatch):
  secrets = ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY")
  for variable in secrets:
    monkeypatch.setenv(variable, "hunter2")
  scheduler, topology = SCHEDULERS[name]
  rendered = scheduler.render(job(topology, setup="pip install -e ."))
  assert rendered.files and "hunter2" not in rendered.show()
  for path, text in rendered.files.items():
    (tmp_path / path.name).write_text(text)
    if path.suffix in (".sh", ".slurm"):
      subprocess.run(["bash", "-n", tmp_path / path.name], check=True)
      if shutil.which("shellcheck"):
        subprocess.run(
          ["shellcheck", "-S", "warning", tmp_path / path.name], check=True
        )
    else:
      loaded = yaml.safe_load(text)
      (tmp_path / "run.sh").write_text(loaded["run"])
      subprocess.run(["bash", "-n", tmp_path / "run.sh"], check=True)
  # The command comes through every layer of quotes in one piece.
  command = shlex.join([*WORDS, "--distributed"])
  assert any(command in text for text in rendered.files.values())


def test_slurm_gets_one_task_for_each_node_of_eight_gpus():
  text = text_of(Slurm(partition="gpu").render(job("h100:8x4")), "job.slurm")
  options = directives(text)
  assert options["nodes"] == "4" and options["ntasks-per-node"] == "1"
  assert options["gpus-per-node"] == "8" and options["partition"] == "gpu"
  # Without it jax gives each task of Slurm one GPU only.
  assert "export JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7\n" in text
  assert "time" not in options and "account" not in options
  one = text_of(Slurm().render(job("h100:2x1")), "job.slurm")
  assert "--distributed" not in one and "JAX_LOCAL_DEVICE_IDS=0,1\n" in one


def test_skypilot_gets_nodes_of_gpus_or_one_slice():
  gpus = yaml.safe_load(text_of(SkyPilot().render(job("h200:8x4")), "task.yaml"))
  assert gpus["num_nodes"] == 4 and gpus["resources"]["accelerators"] == "H200:8"
  assert gpus["resources"]["job_recovery"]["recover_on_exit_codes"] == [LOST]
  assert 'JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"' in gpus["run"]
  tpu = SkyPilot(bucket="gs://mine").render(job("v5e:4x4"))
  slice_ = yaml.safe_load(text_of(tpu, "task.yaml"))
  assert slice_["num_nodes"] == 1 and "JAX_PROCESS_ID" not in slice_["run"]
  assert slice_["resources"]["accelerators"] == "tpu-v5litepod-16"
  assert slice_["file_mounts"] == {"~/sky_workdir/runs": {"source": "gs://mine"}}
  with pytest.raises(TokzooError, match="joins no slices; use xpk"):
    SkyPilot().render(job("2xv5e:4x4"))


@pytest.mark.skipif(
  importlib.util.find_spec("sky") is None, reason="needs the package skypilot"
)
@pytest.mark.parametrize("topology", ["v4:2x2x2", "v5p:4x4x8", "v6e:8x8", "b200:8x2"])
def test_skypilot_reads_its_task(topology, tmp_path):
  import sky  # pyright: ignore[reportMissingImports]

  rendered = SkyPilot(bucket="gs://mine").render(job(topology, setup="true"))
  (tmp_path / "task.yaml").write_text(text_of(rendered, "task.yaml"))
  # A bucket is looked up in the cloud; everything else is checked here.
  text = (tmp_path / "task.yaml").read_text()
  text = re.sub(r"file_mounts:\n.*\n", "", text)
  (tmp_path / "task.yaml").write_text(text)
  task = sky.Task.from_yaml(str(tmp_path / "task.yaml"))
  assert task.num_nodes == (2 if topology.startswith("b200") else 1)
  assert shlex.join(WORDS) in task.run


@pytest.mark.skipif(
  importlib.util.find_spec("xpk") is None, reason="needs the package xpk"
)
def test_xpk_reads_its_command():
  import argparse

  from xpk.core.system_characteristics import (  # pyright: ignore[reportMissingImports]
    get_system_characteristics_by_device_type,
  )
  from xpk.parser.core import set_parser  # pyright: ignore[reportMissingImports]

  (command,) = Xpk(cluster="c").render(job("2xv5p:4x4x8")).commands
  parser = argparse.ArgumentParser(prog="xpk")
  set_parser(parser=parser)
  told = parser.parse_args(list(command[1:]))
  assert (
    told.num_slices == 2 and told.tpu_type == "v5p-256" and told.workload == "a-job"
  )
  assert told.command == "bash launch/a-job/host.sh"
  found, code = get_system_characteristics_by_device_type(told.tpu_type)
  assert code == 0 and found.topology == "4x4x8" and found.chips_per_vm == 4


@pytest.mark.parametrize(
  ("topology", "name"),
  [
    ("v4:4x4x4", "v4-128"),
    ("v5e:16x16", "v5litepod-256"),
    ("v5p:4x4x8", "v5p-256"),
    ("v6e:2x4", "v6e-8"),
  ],
)
def test_slices_are_rented_by_the_names_of_google_cloud(topology, name):
  text = text_of(QueuedResource(zone="z").render(job(topology)), "start.sh")
  assert f"--accelerator-type={name} " in text


@pytest.mark.parametrize(
  ("scheduler", "topology", "words"),
  [
    (Slurm(), "v5e:4x4", "Slurm cannot run a-job on v5e:4x4: it has no TPUs"),
    (Xpk(cluster="c"), "h100:8x4", "it runs TPUs; use slurm or skypilot"),
    (Xpk(), "v5e:4x4", "--xpk.cluster NAME"),
    (QueuedResource(), "v5e:4x4", "--queued-resource.zone ZONE"),
    (QueuedResource(zone="z"), "v5e:2x8", "near is v5e:4x4"),
    (SkyPilot(), "cpu:8", "use local or slurm"),
    (Local(), "h100:8x4", "this is one machine"),
  ],
)
def test_a_machine_that_a_scheduler_does_not_have(scheduler, topology, words):
  with pytest.raises(TokzooError, match=re.escape(words)):
    scheduler.render(job(topology))


def test_hosts_of_a_slice_start_again_after_a_loss_but_not_after_a_mistake(tmp_path):
  text = text_of(QueuedResource(zone="z").render(job("v5e:4x4", restarts=2)), "host.sh")
  for code, starts in ((LOST, 3), (2, 1), (0, 1)):
    count = tmp_path / f"starts-{code}"
    fake = f"tokzoo() {{ echo >>{count}; return {code}; }}\nsleep() {{ :; }}\n"
    text_here = text.replace("set -euo pipefail", f"set -euo pipefail\n{fake}")
    folder = tmp_path / "launch" / "a-job"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "host.sh").write_text(text_here)
    assert subprocess.run(["bash", folder / "host.sh"], check=False).returncode == code
    assert len(count.read_text().splitlines()) == starts


# ---------------------------------------------------------------- the command


def test_what_must_show(command):
  outcome = command(
    "launch", "experiments/image/instella_t2i.py", "--on", "local", "--dry-run"
  )
  assert outcome.code == 0, outcome.err
  assert "train experiments/image/instella_t2i.py --recipe nano" in outcome.out


def test_a_dry_run_of_four_processes(command):
  words = ("launch", "instella-t2i", "--topology", "cpu:8", "--processes", 4)
  told = json.loads(command(*words, "--steps", 70, "--dry-run", "--json").out)
  assert told["files"] == {} and len(told["commands"]) == 4
  for index, one in enumerate(told["commands"]):
    assert "XLA_FLAGS=--xla_force_host_platform_device_count=2" in one
    assert f"--hosts.process-id={index}" in one and "--hosts.num-processes=4" in one
    assert one[one.index("--steps") + 1] == "70"


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (("--topology", "v5q:4x4"), "did you mean 'v5"),
    (("--topology", "cpu:8", "--processes", 3), "cannot share 8 devices evenly"),
    (("--topology", "h100:8x2", "--on", "slurm", "--processes", 4), "one process"),
    (("--topology", "cpu:6", "--mesh.fsdp", 4), "a multiple of 4 devices"),
    (("--name", "No Name"), "at most 40 lower-case letters"),
    (("--stepz", 4), "steps"),
    (("--topologi", "cpu:2"), "--topology"),
    (("--on", "slum"), "slurm"),
  ],
)
def test_mistakes_get_one_sentence(command, words, said):
  outcome = command("launch", "instella-t2i", *words, "--dry-run")
  assert outcome.code == 2 and outcome.out == ""
  assert said in outcome.err and outcome.err.count("\n") == 1


def test_what_does_not_fit_is_refused(command, monkeypatch):
  asked = []

  @dataclasses.dataclass
  class Found:
    fits: bool
    summary: str = "bae-512 does not fit h100:8x1: it takes 90.0 GiB."

  def plan(recipe, topology):
    asked.append((recipe.batch_size, topology))
    return Found(fits=recipe.batch_size <= 64)

  words = (
    "launch",
    "instella-t2i",
    "--on",
    "slurm",
    "--topology",
    "h100:8x1",
    "--dry-run",
  )
  monkeypatch.setattr(launching, "is_installed", lambda topology: False)
  blind = command(*words)
  assert blind.code == 2 and "tokzoo[plan]" in blind.err and "--force" in blind.err
  monkeypatch.setattr(launching, "is_installed", lambda topology: True)
  monkeypatch.setattr(launching, "plan", plan)
  refused = command(*words, "--batch-size", 128)
  assert (
    refused.code == 2 and "does not fit" in refused.err and "--force" in refused.err
  )
  assert refused.out == ""
  assert command(*words, "--batch-size", 128, "--force").code == 0
  assert "sbatch" in command(*words, "--batch-size", 64).out
  assert asked == [(128, "h100:8x1"), (64, "h100:8x1")]


def test_a_tool_that_is_not_installed(command, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(shutil, "which", lambda name: None)
  outcome = command(
    *("launch", "instella-t2i", "--on", "slurm", "--topology", "h100:8x1", "--force")
  )
  assert outcome.code == 2 and "sbatch is not installed here" in outcome.err
  assert not (tmp_path / "launch").exists()


def test_verify_checkpoint_wants_a_run(command, tmp_path):
  outcome = command("verify-checkpoint", tmp_path)
  assert outcome.code == 2 and "there is no checkpoint" in outcome.err
  assert command("verify-checkpoint", tmp_path / "no").code == 2


# ---------------------------------------------------------------- processes


def python(text: str) -> subprocess.Popen:
  return subprocess.Popen([sys.executable, "-S", "-c", text])


DONE, SLEEP = "", "import time; time.sleep(60)"
VICTIM = f"import time; time.sleep(0.5); raise SystemExit({LOST})"


@pytest.mark.parametrize(
  ("programs", "sentence", "code"),
  [
    ([DONE, DONE], "all 2 processes are done", 0),
    (
      [VICTIM, "import os; os.kill(os.getpid(), 9)"],
      "process 1 was killed by SIGKILL",
      1,
    ),
    ([VICTIM, SLEEP], "process 1 hung: the others lost it, and it was killed", 1),
    ([SLEEP, "raise SystemExit(2)"], "process 1 failed with exit code 2", 2),
    ([VICTIM, DONE], "process 1 left the run before its end", 1),
    ([VICTIM, VICTIM], "every process lost another one: the network", 1),
  ],
)
def test_the_process_to_blame_is_named(programs, sentence, code):
  processes = [python(text) for text in programs]
  ended = watch(processes, grace=1.0)
  assert ended.sentence.startswith(sentence) and ended.code == code
  assert all(process.poll() is not None for process in processes)


def test_a_stop_is_handed_on():
  wait = "import signal, sys; signal.signal(15, lambda *_: sys.exit(0)); signal.pause()"
  began = time.monotonic()
  ended = watch(
    [python(wait), python(wait)], 1.0, lambda: time.monotonic() > began + 1.0
  )
  assert ended.codes == (0, 0)


def test_only_what_the_runtime_raised_asks_for_the_lost():
  assert find_lost(TokzooError("a mistake"), 1.0) is None
  assert Hosts().lost_seconds < Hosts().wait_seconds


EXPERIMENT = '''
"""The trainer's smallest task, on digits."""

import dataclasses
import os
import signal
import sys
from pathlib import Path

from tests.train.tasks import AutoEncoder, Linear
from tokzoo.data import DataConfig
from tokzoo.train import Optimizer, Recipe


def rows(batch):
  return {"x": batch["image"].reshape(len(batch["image"]), -1)}


@dataclasses.dataclass(frozen=True)
class Digits(Linear):
  def init(self, rng, batch):
    return super().init(rng, rows(batch))

  def losses(self, variables, batch, rng, step):
    return super().losses(variables, rows(batch), rng, step)


def tiny():
  once = Path("killed")
  here = "--hosts.process-id=1" in sys.argv or os.environ.get("SLURM_PROCID") == "1"
  if here and "STRIKE" in os.environ and not once.exists():
    once.touch()
    os.kill(os.getpid(), signal.SIGKILL)
  return Recipe(
    system="linear",
    name="tiny",
    task=Digits(AutoEncoder(hidden=64, depth=0)),
    data=DataConfig(source="digits", channels=1, size=8, threads=0),
    batch_size=16,
    steps=2,
    optimizers={"model": Optimizer("sgd")},
  )


RECIPES = {"tiny": tiny}
'''


@pytest.fixture
def experiment(tmp_path, monkeypatch) -> Path:
  """An experiment in the working directory, which the processes find, too."""
  monkeypatch.chdir(tmp_path)
  root = str(Path(__file__).parents[2])
  monkeypatch.setenv("PYTHONPATH", root)
  monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
  (tmp_path / "tiny.py").write_text(EXPERIMENT)
  return tmp_path


def test_processes_of_this_machine_start_again_and_end(experiment, monkeypatch, capfd):
  monkeypatch.setenv("STRIKE", "1")
  words = ("launch", "tiny.py", "--recipe", "tiny", "--topology", "cpu:4")
  more = ("--processes", "2", "--out", "run", "--local.grace-seconds", "2")
  assert main([*words, *more]) == 0
  told = capfd.readouterr().err
  assert "process 1 was killed by SIGKILL" in told and "starting again, 3 times" in told
  assert (experiment / "killed").exists()
  assert main(["verify-checkpoint", "run", "--json"]) == 0
  (row,) = json.loads(capfd.readouterr().out)
  assert row["step"] == 2 and row["fault"] is None and row["arrays"] > 10
  flip(experiment / "run")
  assert main(["verify-checkpoint", "run", "--json"]) == 1
  assert "does not agree with its digest" in capfd.readouterr().out


def flip(run: Path) -> None:
  """Changes a byte of the newest checkpoint's largest file of arrays."""
  files = (run / "checkpoints").rglob("state/**/d/*")
  path = max(files, key=lambda file: file.stat().st_size)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def has_slurm() -> bool:
  """Whether a Slurm that takes jobs runs on this machine."""
  if shutil.which("sinfo") is None:
    return False
  told = subprocess.run(
    ["sinfo", "--noheader", "--format=%t"], capture_output=True, text=True, check=False
  )
  return told.returncode == 0 and "idle" in told.stdout


needs_slurm = pytest.mark.skipif(
  not has_slurm(), reason="no Slurm runs here: tests/cli/slurm.sh starts one"
)


def submit_to_slurm(capfd) -> str:
  """The number of a job of two processes."""
  words = ("launch", "tiny.py", "--recipe", "tiny", "--topology", "cpu:4")
  more = ("--processes", "2", "--on", "slurm", "--force", "--out", "run")
  python = Path(sys.executable).parent
  assert main([*words, *more, "--setup", f"export PATH={python}:$PATH"]) == 0
  return re.findall(r"Submitted batch job (\d+)", capfd.readouterr().out)[0]


def wait_until(condition, log: Path) -> None:
  deadline = time.monotonic() + 120
  while not condition():
    assert time.monotonic() < deadline, [path.read_text() for path in log.glob("*.log")]
    time.sleep(0.5)


def job_state(number: str) -> str:
  """What Slurm knows of a job, as words NAME=VALUE."""
  told = subprocess.run(
    ["scontrol", "show", "job", number], capture_output=True, text=True, check=True
  )
  return told.stdout


@pytest.mark.slow
@needs_slurm
def test_processes_meet_in_a_real_slurm(experiment, capfd):
  number = submit_to_slurm(capfd)
  wait_until(
    lambda: "COMPLETED" in job_state(number), experiment / "launch/linear-tiny"
  )
  assert (experiment / "run" / "checkpoints" / "00000002").is_dir()


@pytest.mark.slow
@needs_slurm
def test_a_real_slurm_starts_a_killed_run_again(experiment, monkeypatch, capfd):
  monkeypatch.setenv("STRIKE", "1")
  number = submit_to_slurm(capfd)
  try:
    log = experiment / "launch/linear-tiny"
    wait_until(lambda: "Restarts=1" in job_state(number), log)
    assert re.search(r"task 1: Killed", (log / f"{number}.log").read_text())
  finally:
    # Slurm lets some minutes pass before it starts it.
    subprocess.run(["scancel", number], check=True)
