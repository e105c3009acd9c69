"""SkyPilot: one task file, `sky jobs launch`, on any cloud. https://docs.skypilot.co

A managed job: SkyPilot finds machines, copies the working directory, and starts the job
again after a preemption or a lost host. The run directory must be on storage that outlives
the machines and can rename folders, such as a bucket with a hierarchical namespace.
"""

import dataclasses
import textwrap

from tokzoo.launch.accelerators import GPUS, RUNTIMES, accelerator_type
from tokzoo.launch.job import COORDINATOR_PORT, Job, Rendered, yaml
from tokzoo.train.hosts import LOST


@dataclasses.dataclass(frozen=True)
class SkyPilot:
  """GPU nodes and TPU slices."""

  infra: str | None = None
  """Where: gcp/us-east5, aws, k8s/CONTEXT; None: the cheapest place."""
  spot: bool = False
  """Take machines that may be taken away."""
  bucket: str | None = None
  """Bucket that is mounted at runs/ in the working directory: gs://NAME."""

  def render(self, job: Job) -> Rendered:
    """See `Scheduler`."""
    topology = job.topology
    if topology.chip.platform == "cpu":
      raise job.refuse("SkyPilot", "it is for accelerators; use local or slurm")
    if topology.slices > 1:
      raise job.refuse("SkyPilot", "it joins no slices; use xpk or queued-resource")
    if topology.chip.platform == "tpu":
      # All hosts of a slice are one node of SkyPilot; they find each other by themselves.
      nodes, meeting = 1, ""
      accelerator = f"tpu-{accelerator_type(job, 'SkyPilot')}"
      runtime = yaml(RUNTIMES[topology.chip_name])
      machine = [f"  accelerator_args: {{runtime_version: {runtime}}}"]
    else:
      nodes, machine = topology.num_hosts, []
      accelerator = f"{GPUS[topology.chip_name]}:{topology.shape[0]}"
      meeting = _MEETING if nodes > 1 else ""
    if self.infra:
      machine.append(f"  infra: {yaml(self.infra)}")
    mounts = []
    if self.bucket:
      mounts = [
        "file_mounts:",
        f"  ~/sky_workdir/runs: {{source: {yaml(self.bucket)}}}",
      ]
    lines = [
      f"# {job.name} on {topology}, written by tokzoo launch.",
      f"name: {yaml(job.name)}",
      "resources:",
      f"  accelerators: {yaml(accelerator)}",
      *machine,
      f"  use_spot: {yaml(self.spot)}",
      "  job_recovery:",
      f"    max_restarts_on_errors: {job.restarts}",
      f"    recover_on_exit_codes: [{LOST}]",
      f"num_nodes: {nodes}",
      "workdir: .",
      *mounts,
      *(["setup: |", textwrap.indent(job.setup, "  ")] if job.setup else []),
      "run: |",
      textwrap.indent(meeting + job.command, "  "),
    ]
    path = job.folder / "task.yaml"
    launch = ("sky", "jobs", "launch", "--yes", "--name", job.name, str(path))
    return Rendered({path: "\n".join(lines) + "\n"}, (launch,))


_MEETING = f"""\
export JAX_COORDINATOR_ADDRESS="$(head -n1 <<<"$SKYPILOT_NODE_IPS"):{COORDINATOR_PORT}"
export JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES"
export JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"
"""
