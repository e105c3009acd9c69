"""Slurm: one batch script, `sbatch`. https://slurm.schedmd.com/sbatch.html"""

import dataclasses

from tokzoo.launch.job import MISTAKE, Job, Rendered, exports


@dataclasses.dataclass(frozen=True)
class Slurm:
  """GPU nodes (or processors). What is None is left to the cluster's defaults."""

  partition: str | None = None
  """Partition."""
  account: str | None = None
  """Account that pays."""
  time: str | None = None
  """Time limit, such as 24:00:00; the run is told two minutes before, and saves."""
  options: tuple[str, ...] = ()
  """Further options of sbatch, such as --constraint=infiniband."""

  def render(self, job: Job) -> Rendered:
    """See `Scheduler`."""
    topology = job.topology
    if topology.chip.platform == "tpu":
      raise job.refuse("Slurm", "it has no TPUs; use xpk, queued-resource or skypilot")
    path = job.folder / "job.slurm"
    is_gpu = topology.chip.platform == "cuda"
    options = [
      f"--job-name={job.name}",
      f"--nodes={topology.num_hosts}",
      f"--ntasks-per-node={job.processes // topology.num_hosts}",
      *([f"--gpus-per-node={topology.shape[0]}", "--exclusive"] if is_gpu else []),
      f"--partition={self.partition}" if self.partition else "",
      f"--account={self.account}" if self.account else "",
      f"--time={self.time}" if self.time else "",
      "--signal=TERM@120",
      "--requeue",
      "--open-mode=append",
      f"--output={job.folder}/%j.log",
      *self.options,
    ]
    environment = dict(job.environment)
    if is_gpu:
      # jax would give a task of Slurm one GPU, but a task here feeds all of its node.
      gpus = ",".join(map(str, range(topology.shape[0])))
      environment["JAX_LOCAL_DEVICE_IDS"] = gpus
    lines = [
      "#!/bin/bash",
      *(f"#SBATCH {option}" for option in options if option),
      f"# {job.name} on {topology}, written by tokzoo launch.",
      "set -uo pipefail",
      exports(environment),
      job.setup,
      f"""\
srun --kill-on-bad-exit=1 {job.command}
status=$?
# 0: done. {MISTAKE}: a mistake, which a new start would repeat. Anything else: a host was lost.
restarts=${{SLURM_RESTART_COUNT:-0}}
if [[ $status -ne 0 && $status -ne {MISTAKE} && $restarts -lt {job.restarts} ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $status""",
    ]
    text = "\n".join(line for line in lines if line) + "\n"
    return Rendered({path: text}, (("sbatch", str(path)),))
