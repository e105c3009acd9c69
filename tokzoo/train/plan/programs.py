"""The programs that a recipe runs, lowered for a mesh without a single array.

`train` is the very step of the trainer; `encode`, `decode` and `sample` are the model's own
methods under the recipe's shardings.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree

import tokzoo.data
from tokzoo.errors import TokzooError, unknown
from tokzoo.train.mesh import ambient, batch_sharding, check_batch, host_arrays
from tokzoo.train.recipe import Recipe
from tokzoo.train.state import Layout, lay_out, variables_of_model
from tokzoo.train.step import make_step

What = Literal["train", "encode", "decode", "sample"]

Shapes = Mapping[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Program:
  """A program that is ready to compile.

  lowered:         of `jax.jit`
  arguments:       shapes of what it takes, placed; training returns the first of them anew
  batch_bytes:     of what hosts put on the devices for one run
  argument_bytes:  of what lies on each device before
  num_params:      of the model; the discriminator's count in training
  """

  lowered: Any
  arguments: tuple[Any, ...]
  batch_bytes: int
  argument_bytes: int
  num_params: int


def lower(recipe: Recipe, what: What, mesh: Mesh) -> Program:
  """Traces a program of a recipe on a mesh, whose devices need not be there.

  Raises:
    TokzooError: the recipe does not fit the mesh, or its model has no such method.
  """
  if what not in get_args(What):
    raise unknown("program", what, get_args(What))
  check_batch(mesh, recipe.batch_size, recipe.accumulate if what == "train" else 1)
  batch = batch_shapes(recipe)
  layout = lay_out(recipe, batch, mesh)
  if what == "train":
    placed = _on_batch_axis(batch, mesh)
    arguments = (layout.shapes, placed)
    lowered = make_step(recipe, layout).lower(*arguments)
    params = layout.shapes.params
  else:
    lowered, arguments, params = _inference(recipe, what, layout, batch)
  return Program(
    lowered=lowered,
    arguments=arguments,
    batch_bytes=_bytes(arguments[-1]),
    argument_bytes=_bytes_per_device(arguments),
    num_params=sum(leaf.size for leaf in jax.tree.leaves(params)),
  )


def memory_of(compiled: Any) -> dict[str, int]:
  """Bytes of a device that a compiled program takes, by its compiler."""
  memory = compiled.memory_analysis()
  assert memory is not None
  return {
    "arguments": memory.argument_size_in_bytes,
    "outputs": memory.output_size_in_bytes,
    "aliased": memory.alias_size_in_bytes,
    "temporaries": memory.temp_size_in_bytes,
    "code": memory.generated_code_size_in_bytes,
  }


def batch_shapes(recipe: Recipe) -> Shapes:
  """Arrays of a global batch, as the trainer would get them, without reading the data where
  the recipe says enough: pictures of `data.size`, sounds of `data.seconds`, or `example_batch` of
  the model's config.

  Raises:
    TokzooError: it does not, and the data is not here to be looked at.
  """
  rows = recipe.batch_size
  example = getattr(getattr(recipe.task, "model", None), "example_batch", None)
  if example is not None:
    found = jax.eval_shape(example)
  elif recipe.data.size is not None and not recipe.data.source.startswith("tokens:"):
    side = recipe.data.size
    image = jax.ShapeDtypeStruct((1, side, side, recipe.data.channels), jnp.float32)
    found = {"image": image}
  elif recipe.data.seconds is not None and recipe.data.sample_rate_hz is not None:
    length = round(recipe.data.seconds * recipe.data.sample_rate_hz)
    shape = (1, length, recipe.data.channels)
    found = {"audio": jax.ShapeDtypeStruct(shape, jnp.float32)} | _taught(
      recipe, length
    )
  else:
    loader = tokzoo.data.loader(recipe.data, rows, recipe.seed, slice(0, rows))
    try:
      found = host_arrays(next(loader))
    finally:
      loader.close()
  return {
    name: jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype)
    for name, array in found.items()
  }


def _taught(recipe: Recipe, length: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Features of the teachers of a codec that is distilled, a row for each frame of its tokens."""
  how = getattr(recipe.task, "distillation", None)
  if how is None:
    return {}
  model: Any = getattr(recipe.task, "model", None)
  shape = (1, -(-length // model.hop), model.semantic_dim)
  return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name in how.teachers}


def _inference(recipe: Recipe, what: What, layout: Layout, batch: Shapes):
  """A method of the model on a batch, with the weights that the trainer would keep."""
  config = getattr(recipe.task, "model", None)
  module = None if config is None else config.build()
  if config is None or module is None or not hasattr(module, what):
    raise TokzooError(
      f"the recipe {recipe.name} of {recipe.system} has nothing to {what} with: plan one whose "
      "model does, or --what train."
    )
  mesh = layout.mesh
  variables = variables_of_model(layout.shapes.variables())

  def encode(variables: PyTree, given: PyTree) -> PyTree:
    return module.apply(variables, given, method="encode")

  def decode(variables: PyTree, tokens: PyTree) -> PyTree:
    return module.apply(variables, tokens, method="decode")

  def sample(variables: PyTree, key: PyTree, condition: PyTree) -> PyTree:
    # A class has its own unconditional row; of anything else one is given.
    is_class = isinstance(condition, jax.Array)
    given = {} if is_class else {"null": condition}
    return module.apply(
      variables, key, condition, **given, **recipe.sampling, method="sample"
    )

  if what == "sample":
    condition = _on_batch_axis(jax.eval_shape(config.condition, dict(batch)), mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    function, arguments = sample, (variables, key, condition)
  else:
    given = batch["audio"] if "audio" in batch else _tiles(recipe, batch["image"])
    inputs = given if what == "encode" else jax.eval_shape(encode, variables, given)
    function = encode if what == "encode" else decode
    arguments = (variables, _on_batch_axis(inputs, mesh))
  lowered = jax.jit(ambient(mesh, function)).lower(*arguments)
  return lowered, arguments, variables["params"]


def _tiles(recipe: Recipe, image: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
  """A batch of pictures as the tokenizer takes them."""
  if not getattr(recipe.task, "tile", False):
    return image
  rows, height, width, channels = image.shape
  side = recipe.task.model.image_size
  number = rows * (height // side) * (width // side)
  return jax.ShapeDtypeStruct((number, side, side, channels), image.dtype)


def _on_batch_axis(tree: PyTree, mesh: Mesh) -> PyTree:
  """Shapes split over the mesh by their axis of examples, the first one."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
  )


def _bytes_per_device(tree: PyTree) -> int:
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
    if leaf.sharding is not None
  )


def _bytes(tree: PyTree) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
