"""Image tokenizers and generators beside the same architectures in PyTorch, eager.

  encode, decode    of a batch of pictures
  train step        squared error and the quantizer's losses, backward, AdamW
  sample            every token of an image: one after the other with a cache (LlamaGen, RAR),
                    or all in 8 steps (ImageBert)

Float32, random weights that both sides share; sampling takes the likeliest tokens, so that both
draw the same ones. `nano` is what a test can afford, `base` the published sizes: TiTok-S-128 (with
the head that makes pixels), LlamaGen's VQ-16 and GPT-B, RAR-B, and the ImageBert of TiTok-L-32.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tokzoo.generators import llamagen as gpt
from tokzoo.generators import rar
from tokzoo.generators.maskgit import imagebert
from tokzoo.kernels.racing import Row, race
from tokzoo.tokenizers.image import llamagen, titok
from tokzoo.tokens import Tokens
from tokzoo.weights import Table

PEER = "PyTorch eager"
SIZES = ("nano", "base")


@dataclasses.dataclass(frozen=True)
class Case:
  """One model to time.

  name, size:  of the rows
  config:      ours
  weights:     the table to the published names
  batch:       pictures, or images to sample
  settings:    of `sample`; None: a tokenizer
  shared:      settings that the peer's `sample` has as well
  """

  name: str
  size: str
  config: Any
  weights: Table
  batch: int
  settings: dict[str, Any] | None = None
  shared: tuple[str, ...] = ("guidance",)


_CAUSAL = {"temperature": 0.0, "guidance": 2.0}
_MASKED = {
  "temperature": 0.0,
  "guidance": 2.0,
  "guidance_decay": "constant",
  "steps": 8,
}
_TINY: dict[str, Any] = {
  "width": 64,
  "layers": 2,
  "heads": 2,
  "num_classes": 10,
  "vocab": 256,
}

CASES = (
  Case(
    "TiTok",
    "nano",
    titok.Config(
      image_size=32,
      patch=8,
      num_tokens=16,
      encoder=titok.Size(64, 2, 2),
      decoder=titok.Size(64, 2, 2),
      num_codes=512,
      code_dim=8,
      is_legacy=False,
      pixels=None,
    ),
    titok.WEIGHTS,
    16,
  ),
  Case(
    "LlamaGen VQ",
    "nano",
    llamagen.Config(
      image_size=32,
      width=16,
      multipliers=(1, 2, 2),
      blocks=1,
      latent_dim=32,
      groups=8,
      num_codes=256,
    ),
    llamagen.WEIGHTS,
    16,
  ),
  Case("LlamaGen GPT", "nano", gpt.Config(grid=8, **_TINY), gpt.WEIGHTS, 1, _CAUSAL),
  Case(
    "RAR",
    "nano",
    rar.Config(grid=(8, 8), mlp_width=256, **_TINY),
    rar.WEIGHTS,
    1,
    {**_CAUSAL, "guidance_power": 0.0},
  ),
  Case(
    "ImageBert",
    "nano",
    imagebert.ImageBertConfig(grid=(16,), mlp_width=256, **_TINY),
    imagebert.WEIGHTS,
    1,
    _MASKED,
    ("steps", "guidance"),
  ),
  Case(
    "TiTok",
    "base",
    dataclasses.replace(
      titok.PRESETS["titok-s128"], is_legacy=False, use_l2_norm=False, pixels=None
    ),
    titok.WEIGHTS,
    4,
  ),
  Case("LlamaGen VQ", "base", llamagen.Config(), llamagen.WEIGHTS, 1),
  Case("LlamaGen GPT", "base", gpt.Config(), gpt.WEIGHTS, 1, _CAUSAL),
  Case("RAR", "base", rar.Config(), rar.WEIGHTS, 1, {**_CAUSAL, "guidance_power": 0.0}),
  Case(
    "ImageBert",
    "base",
    imagebert.ImageBertConfig(),
    imagebert.WEIGHTS,
    1,
    _MASKED,
    ("steps", "guidance"),
  ),
)


def bench(
  turns: int, size: str | None = None, name: str | None = None
) -> Iterator[Row]:
  """Rows of every case of a size and a name, as they are measured.

  The spec of a row tells the model, its size and the batch; examples/s are batch / seconds.
  """
  for case in CASES:
    if size in (None, case.size) and name in (None, case.name):
      for op, (ours, arguments), peer in programs(case):
        spec = f"{case.name} {case.size}, batch {case.batch}"
        yield from race(op, spec, {"tokzoo": (ours, arguments)}, {PEER: peer}, turns)


def programs(
  case: Case,
) -> Iterator[
  tuple[str, tuple[Callable[..., Any], tuple[Any, ...]], Callable[[], Any]]
]:
  """What is timed of a case: operation, our function with its arguments, the peer's call."""
  import torch

  module, variables = case.config.build(), random_variables(case.config)
  theirs = _peer(case)
  state = case.weights.to_authors(variables)
  theirs.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in state.items()})
  theirs.eval()
  peer = torch.no_grad()
  if case.settings is not None:
    labels = np.arange(case.batch, dtype=np.int32)
    rows, told = torch.from_numpy(labels.astype(np.int64)), case.settings

    def sample(variables: Any, labels: Any) -> Any:
      return module.apply(variables, None, labels, **told, method="sample").ids

    def sample_masked(variables: Any, labels: Any) -> Any:
      # Noise of temperature 0 is none; the sampler asks for a key all the same.
      key = jax.random.key(0)
      return module.apply(variables, key, labels, **told, method="sample").ids

    ours = sample_masked if "steps" in told else sample
    shared = {key: told[key] for key in case.shared}
    yield (
      "sample",
      (ours, (variables, labels)),
      peer(lambda: theirs.sample(rows, **shared)),
    )
    return
  c = case.config
  shape = (case.batch, c.image_size, c.image_size, c.channels)
  image = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
  pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
  tokens: Tokens = jax.jit(lambda v, x: module.apply(v, x, method="encode"))(
    variables, image
  )
  ids = torch.from_numpy(np.asarray(tokens.ids).astype(np.int64))
  yield (
    "encode",
    (lambda v, x: module.apply(v, x, method="encode").ids, (variables, image)),
    peer(lambda: theirs.encode(pixels)),
  )
  yield (
    "decode",
    (lambda v, t: module.apply(v, t, method="decode"), (variables, tokens)),
    peer(lambda: theirs.decode(ids)),
  )
  yield "train step", _our_step(module, variables, image), _their_step(theirs, pixels)


def _our_step(module: Any, variables: Any, image: np.ndarray) -> tuple[Any, Any]:
  optimizer = optax.adamw(1e-4, weight_decay=0.01)
  params = variables["params"]

  def loss_of(params: Any, image: Any) -> Any:
    output = module.apply({"params": params}, image, train=True)
    losses = output.losses
    error = jnp.square(output.reconstruction - image).mean()
    return error + 0.25 * losses["commitment"] + losses["codebook"]

  def step(params: Any, state: Any, image: Any) -> Any:
    loss, gradient = jax.value_and_grad(loss_of)(params, image)
    change, state = optimizer.update(gradient, state, params)
    return loss, optax.apply_updates(params, change), state

  return step, (params, jax.jit(optimizer.init)(params), image)


def _their_step(model: Any, pixels: Any) -> Callable[[], Any]:
  import torch

  optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.01, fused=True)

  def step() -> float:
    optimizer.zero_grad(set_to_none=True)
    loss = model(pixels)
    loss.backward()
    optimizer.step()
    return loss.item()

  return step


def _peer(case: Case) -> Any:
  from tokzoo.train.bench.peers import imagebert as bert_peer
  from tokzoo.train.bench.peers import llamagen as llamagen_peer
  from tokzoo.train.bench.peers import rar as rar_peer
  from tokzoo.train.bench.peers import titok as titok_peer

  made: dict[type, Callable[[Any], Any]] = {
    titok.Config: titok_peer.TiTok,
    llamagen.Config: llamagen_peer.VQ,
    gpt.Config: llamagen_peer.GPT,
    rar.Config: rar_peer.RAR,
    imagebert.ImageBertConfig: bert_peer.ImageBert,
  }
  return made[type(case.config)](case.config)


def random_variables(config: Any) -> Any:
  """Weights that leave no layer at zero, of the scale that keeps numbers near one."""
  module, key = config.build(), jax.random.key(0)

  def init() -> Any:
    if hasattr(config, "image_size"):
      side = config.image_size
      return module.init(key, jnp.zeros((1, side, side, config.channels)))
    return module.init(key, *config.example(), method="loss")

  draw = np.random.default_rng(0)

  def random(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    kernel = int(np.prod(leaf.shape[:-1])) ** -0.5
    scale = {"kernel": kernel, "bias": 0.02}.get(path[-1].key, 1.0)
    return draw.normal(size=leaf.shape, scale=scale).astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(random, jax.eval_shape(init))
