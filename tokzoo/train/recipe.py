"""A recipe: everything that a training run is, as one frozen dataclass.

Recipes are made by functions in `experiments/`, overridden from the command line by tyro,
written as JSON into every checkpoint, and handed to `tokzoo.train.train`.
"""

import dataclasses
from typing import Annotated, Any, Literal

import tyro

from tokzoo.data.config import DataConfig

Spec = tuple[str | None, ...]
"""The mesh axis of each array axis, as in `jax.sharding.PartitionSpec`."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """One player's optimizer and schedule."""

  name: Literal["adamw", "adam", "sgd", "muon"] = "adamw"
  """Update rule. `muon`: orthogonalised momentum for matrices, adamw for the rest."""
  peak_lr: float = 1e-3
  """Learning rate after warm-up."""
  end_lr: float = 0.0
  """Learning rate at the last step (cosine and linear)."""
  schedule: Literal["constant", "cosine", "linear", "rsqrt", "drops", "exponential"] = (
    "cosine"
  )
  """Shape of the learning rate after warm-up."""
  warmup_steps: int = 0
  """Steps of linear warm-up."""
  start_lr: float = 0.0
  """Learning rate from which it warms up."""
  hold: float = 0.0
  """Share of the steps after warm-up that stay at the peak (cosine and linear)."""
  drops: tuple[int, ...] = ()
  """Steps of the run at which the learning rate is divided by ten (drops)."""
  decay: float = 1.0
  """Factor of the learning rate from one step to the next (exponential)."""
  b1: float = 0.9
  """Decay of the first moment; momentum for sgd."""
  b2: float = 0.999
  """Decay of the second moment."""
  eps: float = 1e-8
  """Added to the root of the second moment."""
  weight_decay: float = 0.0
  """Decoupled weight decay."""
  decay_axes: int = 2
  """Axes of a parameter that decays, at least: at 1 gains and biases do too, as by torch's AdamW."""
  no_decay: tuple[str, ...] = ()
  """Regular expressions, found anywhere in a parameter's path, that spare it the decay."""
  clip_norm: float | None = None
  """Largest global norm of the player's gradient."""
  start_step: int = 0
  """The player's first update (a discriminator may start late)."""


@dataclasses.dataclass(frozen=True)
class MeshShape:
  """Devices along each axis of the mesh; -1 takes what is left."""

  data: int = -1
  """Batch is split, parameters are copied."""
  fsdp: int = 1
  """Batch and parameters are split."""
  model: int = 1
  """Parameters are split by rules (tensor parallelism, large codebooks)."""


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """An evaluation on a schedule of its own."""

  data: DataConfig
  """What it runs on."""
  every: int = 0
  """Steps between two runs; 0: only after the last step."""
  batches: int | None = None
  """Batches of the recipe's size; None: the whole split once."""
  use_ema: bool = True
  """Evaluate the EMA weights where the recipe keeps them."""


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Everything that a training run is."""

  system: Annotated[str, tyro.conf.Suppress]
  """Slug of the system."""
  name: Annotated[str, tyro.conf.Suppress]
  """Name of the recipe: nano, or as published."""
  task: Annotated[Any, tyro.conf.arg(name="")]
  """Model config and loss weights (`tokzoo.contract.Task`)."""
  data: DataConfig
  """Training data."""
  batch_size: int
  """Examples per step, over all hosts."""
  steps: int
  """Optimizer steps of the whole run."""
  optimizers: dict[str, Optimizer]
  """Optimizer of each of the task's players."""
  evaluators: dict[str, Evaluator] = dataclasses.field(default_factory=dict)
  """Named evaluations."""
  accumulate: int = 1
  """Micro-batches whose gradients are averaged before an update."""
  ema: float | None = None
  """Decay of the averaged weights; None: none are kept."""
  compute_dtype: Literal["float32", "bfloat16"] = "float32"
  """Dtype of activations and of the weights they meet; masters stay float32."""
  remat: Literal["none", "blocks", "dots"] = "none"
  """What the backward pass recomputes: nothing; all but the outputs of the blocks; all but
  products with weights."""
  freeze: tuple[str, ...] = ()
  """Regular expressions over parameter paths that stay as they were initialised."""
  init_from: str | None = None
  """A run directory or catalog name whose weights the run starts from, where paths agree."""
  mesh: MeshShape = MeshShape()
  """How devices are laid out."""
  sharding: tuple[tuple[str, Spec], ...] = ()
  """Path rules (regular expression, spec); FSDP over the largest divisible axis otherwise."""
  log_every: int = 10
  """Steps between two lines of the log."""
  picture_every: int = 0
  """Steps between two image summaries; 0: only after the last step."""
  save_every: int = 500
  """Steps between two checkpoints; the last step is always saved."""
  keep: int = 2
  """Newest checkpoints that are kept."""
  seed: int = 0
  """Of initialisation, data order and every random draw."""
  tokenizer: str | None = None
  """Checkpoint or run that turns the data into tokens before a generator is trained on them;
  None: the data is used as it is."""
  sampling: dict[str, int | float | str] = dataclasses.field(default_factory=dict)
  """Settings with which the trained generator is sampled."""
