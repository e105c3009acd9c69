"""xpk: TPU slices on Google Kubernetes Engine. https://github.com/AI-Hypercomputer/xpk

The cluster exists already (`xpk cluster create`). xpk builds an image of the working
directory over `image`, starts it as a JobSet on every host of every slice, and again after
a host was lost. The run directory must be mounted storage (`xpk storage create`).
"""

import dataclasses

from tokzoo.errors import TokzooError
from tokzoo.launch.accelerators import accelerator_type
from tokzoo.launch.job import Job, Rendered, script
from tokzoo.train.hosts import LOST


@dataclasses.dataclass(frozen=True)
class Xpk:
  """TPU slices on GKE."""

  cluster: str | None = None
  """Name of the cluster."""
  project: str | None = None
  """Project; None: gcloud's."""
  zone: str | None = None
  """Zone; None: gcloud's."""
  storage: str | None = None
  """Storage of the cluster to mount, for the data and the run directory."""
  image: str = "python:3.12"
  """Image under the working directory."""

  def render(self, job: Job) -> Rendered:
    """See `Scheduler`."""
    kind = accelerator_type(job, "xpk")
    if self.cluster is None:
      raise TokzooError("xpk needs a cluster: give --xpk.cluster NAME.")
    path = job.folder / "host.sh"
    text = script(job, "set -euo pipefail", job.setup, f"exec {job.command}")
    command = [
      *("xpk", "workload", "create", f"--workload={job.name}"),
      f"--cluster={self.cluster}",
      f"--tpu-type={kind}",
      f"--num-slices={job.topology.slices}",
      f"--base-docker-image={self.image}",
      "--script-dir=.",
      f"--max-restarts={job.restarts}",
      # Those of signals (127-255) restart it too.
      f"--restart-on-exit-codes={LOST}",
      f"--command=bash {path}",
    ]
    for name in ("project", "zone", "storage"):
      if getattr(self, name):
        command.append(f"--{name}={getattr(self, name)}")
    return Rendered({path: text}, (tuple(command),))
