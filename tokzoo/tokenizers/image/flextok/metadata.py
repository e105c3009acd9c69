"""What a published file of FlexTok says of itself, held against its preset.

apple/ml-flextok @ 87d00cc (`flextok/utils/checkpoint.py`) builds the model from a Hydra config
that lies in the metadata of model.safetensors, an entry for each of its parts, as the text of a
Python literal:

  vae          {scaling_factor, latent_channels, ...}
  encoder      {module_dict: {enc_transformer: {dim, depth, head_dim, ...}, ...}}
  decoder      {module_dict: {dec_transformer, dec_time_embedder: {max_timestep, ...}, ...}}
  regularizer  {levels, ...}

Sizes must be those of the preset. What no tensor shows is taken from the file: the levels, the
autoencoder's scale, the longest time, and how tokens and conditions were dropped in training. The
longest period (256) is a constant of the code and the number of steps an argument of the call:
neither is in the file.
"""

import ast
import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from tokzoo.errors import TokzooError
from tokzoo.tokenizers.image.flextok.model import Config

_ENC, _DEC = "encoder.module_dict.enc", "decoder.module_dict.dec"


def check_metadata(config: Config, metadata: Mapping[str, str], name: str) -> Config:
  """The config of a file: the preset's, with what only the file knows.

  Args:
    config: of the preset.
    metadata: of the file; without the entries above the preset is kept as it is.
    name: of the file, for the error.

  Raises:
    TokzooError: the file says that it has other sizes.
  """
  said = _parsed(metadata, name)
  for key, ours in _sizes(config).items():
    theirs = _find(said, key)
    theirs = list(theirs) if isinstance(theirs, tuple) else theirs
    if theirs is not None and theirs != ours:
      raise TokzooError(
        f"{name} says that its {key} is {theirs}, but the preset has {ours}: choose the preset "
        "that the file was made with."
      )
  return _taken(config, said, name)


def _parsed(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
  """The entries of the config that can be read."""
  said = {}
  for part in ("vae", "encoder", "decoder", "regularizer"):
    if part not in metadata:
      continue
    try:
      said[part] = ast.literal_eval(metadata[part])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
      warnings.warn(
        f"{name} says of its {part} what cannot be read, so the preset's values are taken: "
        f"{metadata[part][:60]!r}",
        stacklevel=2,
      )
  return said


def _sizes(config: Config) -> dict[str, Any]:
  """What the shapes of the tensors depend on, or should: where it lies, and ours."""
  c = config
  sizes: dict[str, Any] = {
    f"{_ENC}_patch_emb.patch_sizes": [c.patch, c.patch],
    f"{_ENC}_register_module.n_max": c.num_tokens,
    f"{_DEC}_noise_patch_emb.patch_sizes": [c.patch, c.patch],
    f"{_DEC}_time_embedder.frequency_embedding_size": c.time_features,
  }
  for path, size in ((_ENC, c.encoder), (_DEC, c.decoder)):
    sizes |= {
      f"{path}_transformer.dim": size.width,
      f"{path}_transformer.depth": size.layers,
      f"{path}_transformer.head_dim": c.head_dim,
    }
  if c.vae is not None:
    sizes["vae.latent_channels"] = c.vae.latent_channels
  return sizes


def _taken(config: Config, said: Mapping[str, Any], name: str) -> Config:
  """The config with the file's values where no tensor shows them."""
  levels = _find(said, "regularizer.levels")
  if levels is not None:
    if len(levels) != len(config.levels):
      raise TokzooError(
        f"{name} says that its regularizer.levels are {levels}, but the codes of the preset have "
        f"{len(config.levels)} features: choose the preset that the file was made with."
      )
    config = dataclasses.replace(config, levels=tuple(levels))
  scale = _find(said, "vae.scaling_factor")
  if scale is not None and config.vae is not None:
    vae = dataclasses.replace(config.vae, scale=float(scale))
    config = dataclasses.replace(config, vae=vae)
  embedder = _find(said, f"{_DEC}_time_embedder")
  if embedder is not None:
    # The source's own default: what it builds where the config names none.
    longest = float(embedder.get("max_timestep", 1000.0))
    config = dataclasses.replace(config, max_time=longest)
  law = _find(said, f"{_DEC}_nested_dropout.size_sampling_mode")
  if law is not None:
    config = dataclasses.replace(config, dropout=law)
  rate = _find(said, f"{_DEC}_latent_dropout.dropout_prob")
  if rate is not None:
    config = dataclasses.replace(config, null_rate=float(rate))
  return config


def _find(said: Mapping[str, Any], key: str) -> Any:
  """What lies at a.b.c, or None."""
  found: Any = said
  for part in key.split("."):
    found = found.get(part) if isinstance(found, Mapping) else None
  return found
