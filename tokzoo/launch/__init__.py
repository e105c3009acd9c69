"""Jobs for the schedulers that people have: rendered whole, then run by their own tools."""

from tokzoo.launch.job import Job, Rendered, Scheduler, submit
from tokzoo.launch.local import Local
from tokzoo.launch.queued_resource import QueuedResource
from tokzoo.launch.skypilot import SkyPilot
from tokzoo.launch.slurm import Slurm
from tokzoo.launch.xpk import Xpk

__all__ = [
  "Job",
  "Local",
  "QueuedResource",
  "Rendered",
  "Scheduler",
  "SkyPilot",
  "Slurm",
  "Xpk",
  "submit",
]
