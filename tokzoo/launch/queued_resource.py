"""Queued resources: TPU slices of Google Cloud, without a cluster.
https://cloud.google.com/tpu/docs/queued-resources

Three steps by gcloud: ask for the slices and wait for them, copy the working directory to
every host, run the command on all hosts at once. A lost process is started again by its
host; a slice that Google takes away must be asked for again.
"""

import dataclasses

from tokzoo.errors import TokzooError
from tokzoo.launch.accelerators import RUNTIMES, accelerator_type
from tokzoo.launch.job import Job, Rendered, again, script


@dataclasses.dataclass(frozen=True)
class QueuedResource:
  """TPU slices."""

  zone: str | None = None
  """Zone that has such chips, such as us-east5-b."""
  project: str | None = None
  """Project; None: gcloud's."""
  runtime: str | None = None
  """Software version of the machines; None: the usual one of the chip."""
  spot: bool = False
  """Take slices that may be taken away."""

  def render(self, job: Job) -> Rendered:
    """See `Scheduler`."""
    kind = accelerator_type(job, "queued-resource")
    if self.zone is None:
      raise TokzooError(
        "queued-resource needs a zone: give --queued-resource.zone ZONE."
      )
    slices = job.topology.slices
    if slices == 1:
      nodes, naming = [job.name], f"--node-id={job.name}"
    else:
      nodes = [f"{job.name}-{index}" for index in range(slices)]
      naming = f"--node-count={slices} --node-prefix={job.name}"
    place = f"--zone={self.zone}" + (
      f" --project={self.project}" if self.project else ""
    )
    runtime = self.runtime or RUNTIMES[job.topology.chip_name]
    host, start = job.folder / "host.sh", job.folder / "start.sh"
    return Rendered(
      {
        host: script(
          job,
          "set -euo pipefail",
          'cd "$(dirname "$0")"/' + _up(job),
          job.setup,
          again(job),
        ),
        start: script(
          job,
          f"""
set -euo pipefail
place=({place})
nodes=({" ".join(nodes)})
gcloud compute tpus queued-resources create {job.name} "${{place[@]}}" \\
  {naming} --accelerator-type={kind} --runtime-version={runtime}{" --spot" * self.spot}
while true; do
  state=$(gcloud compute tpus queued-resources describe {job.name} "${{place[@]}}" \\
    --format='value(state.state)')
  echo "{job.name}: $state"
  case $state in
    ACTIVE) break ;;
    FAILED | SUSPENDED | SUSPENDING | DELETING) exit 1 ;;
  esac
  sleep 30
done

tar --exclude=.git --exclude=runs --exclude=__pycache__ -czf /tmp/{job.name}.tgz .
for node in "${{nodes[@]}}"; do
  gcloud compute tpus tpu-vm scp /tmp/{job.name}.tgz "$node": "${{place[@]}}" --worker=all
done

running=()
for node in "${{nodes[@]}}"; do
  gcloud compute tpus tpu-vm ssh "$node" "${{place[@]}}" --worker=all \\
    --command='mkdir -p tokzoo && tar -xzf {job.name}.tgz -C tokzoo && bash tokzoo/{host}' &
  running+=($!)
done
status=0
for one in "${{running[@]}}"; do
  wait "$one" || status=$?
done
echo "Give the machines back: gcloud compute tpus queued-resources delete {job.name} ${{place[*]}} --force"
exit $status""",
        ),
      },
      (("bash", str(start)),),
    )


def _up(job: Job) -> str:
  """From the job's folder to the working directory."""
  return "/".join(".." for _ in job.folder.parts)
