"""`tokzoo.load`: from a name, a file, a run or a repository to a model ready to use."""

import dataclasses
import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tokzoo import systems
from tokzoo.errors import TokzooError, unknown
from tokzoo.files import sha256_of
from tokzoo.hub.catalog import Entry, catalog, find_entry
from tokzoo.hub.codec import PretrainedCodec, example_sound
from tokzoo.hub.download import download, download_url
from tokzoo.hub.pretrained import (
  Card,
  Pretrained,
  PretrainedGenerator,
  PretrainedTokenizer,
)
from tokzoo.hub.speaker import PretrainedSpeaker
from tokzoo.places import bundled, cache_dir
from tokzoo.remote import is_remote, located, on_disk
from tokzoo.train import from_json, load_run, to_json
from tokzoo.train.state import variables_of_model
from tokzoo.version import __version__ as version
from tokzoo.weights import Table, flatten, is_flax, read_metadata, read_state
from tokzoo.weights.checkpoint import read_checkpoint, write_checkpoint


def load(
  name: str | Path,
  *,
  preset: str | None = None,
  tokenizer: str | Path | None = None,
  revision: str | None = None,
) -> Any:
  """Loads a model: `load("instella-photos-nano").encode(picture)`.

  Args:
    name: a catalog name; a run directory; a `.safetensors` file that tokzoo exported, here or
      remote (gs://...); a file in its authors' layout (with `preset`), safetensors, torch's or
      a Flax checkpoint; or "owner/name" or "owner/name/path" of a hub repository (with
      `preset` unless the catalog knows it).
    preset: the published config that a file in the authors' layout was made with.
    tokenizer: for a generator, whose tokens it makes, if its own record does not say.
    revision: of a hub repository.

  Returns:
    A `PretrainedTokenizer` (of pictures), a `PretrainedCodec` (of sound), a
    `PretrainedGenerator`, or a `PretrainedSpeaker` (that makes its own tokens).

  Raises:
    TokzooError: nothing of that name, weights that do not fit, a tokenizer that is not the
      one a generator was trained with.
  """
  text = str(name)
  if text in catalog():
    return _from_entry(find_entry(text))
  if is_remote(text):
    return _from_remote(text, preset, tokenizer)
  path = Path(name).expanduser()
  if path.is_dir():
    return _from_run(path, tokenizer)
  if path.is_file():
    return _from_file(path, preset, tokenizer)
  parts = text.split("/")
  is_repository = len(parts) >= 3 or (len(parts) == 2 and not path.suffix)
  if is_repository and not text.startswith((".", "/", "~")):
    return _from_hub(text, preset, tokenizer, revision)
  if path.suffix or "/" in text:
    raise TokzooError(
      f"there is nothing at {text}: name a file, a run directory, a hub repository or one of "
      f"{', '.join(sorted(catalog()))}."
    )
  raise unknown("checkpoint", text, catalog())


def _from_entry(entry: Entry) -> Pretrained:
  card = {
    "name": entry.name,
    "system": entry.system,
    "part": entry.part,
    "code_licence": entry.code_licence,
    "weights_licence": entry.weights_licence,
    "tile": entry.tile,
    "sampling": entry.sampling,
  }
  if entry.file is not None:
    path = bundled("checkpoints") / entry.file
    if entry.sha256 and path.is_file() and sha256_of(path) != entry.sha256:
      raise TokzooError(
        f"{path} has not the SHA-256 that the catalog records: it was changed or cut short; "
        "reinstall tokzoo, or retrain it (see checkpoints/README.md)."
      )
    variables, header = read_checkpoint(path)
    config = from_json(header["config"])
    return _assemble(config, variables, Card(**card, header=header), entry.tokenizer)
  assert entry.preset is not None
  if entry.url is not None:
    path = download_url(entry.url, entry.sha256)
  else:
    assert entry.hub is not None and entry.path is not None
    path = download(entry.hub, entry.path, entry.revision, entry.sha256)
  return _from_authors(
    path, entry.preset, entry.under, entry.tokenizer, card, entry.averaged
  )


def _from_run(path: Path, tokenizer: str | Path | None) -> Pretrained:
  recipe_json, variables, step = load_run(path)
  recipe = from_json(recipe_json)
  system, part = systems.part_of_config(recipe.task.model)
  # What only training needs (a discriminator) is not part of the model.
  variables = variables_of_model(variables)
  header = {"recipe": recipe_json, "step": step}
  card = Card(
    name=str(path),
    system=system,
    part=part,
    code_licence="Apache-2.0",
    weights_licence="yours",
    tile=getattr(recipe.task, "tile", False),
    sampling=recipe.sampling,
    header={**header, "tokenizer_origin": _kept_origin(path)},
  )
  whose = tokenizer or recipe.tokenizer
  return _assemble(recipe.task.model, variables, card, whose)


def _from_remote(
  name: str, preset: str | None, tokenizer: str | Path | None
) -> Pretrained:
  if not located(name).is_file():
    raise TokzooError(f"there is no file at {name}: check the path.")
  with on_disk(name) as path:
    model = _from_file(path, preset, tokenizer)
  model.card = dataclasses.replace(model.card, name=name)
  return model


def _from_file(
  path: Path, preset: str | None, tokenizer: str | Path | None
) -> Pretrained:
  if path.suffix == ".safetensors" and preset is None:
    variables, header = read_checkpoint(path)
    card = Card(
      name=str(path),
      system=header["system"],
      part=header["part"],
      code_licence="Apache-2.0",
      weights_licence=header.get("weights_licence", "not stated"),
      tile=header.get("tile", False),
      sampling=header.get("sampling", {}),
      header=header,
    )
    whose = tokenizer or header.get("tokenizer")
    return _assemble(from_json(header["config"]), variables, card, whose)
  if preset is None:
    raise TokzooError(
      f"{path} holds weights in their authors' layout: name the published config they were "
      "made with (preset=..., --preset)."
    )
  system, part, _ = systems.find_preset(preset)
  card = {
    "name": str(path),
    "system": system,
    "part": part,
    "code_licence": "see the authors' repository",
    "weights_licence": "see the authors' repository",
  }
  return _from_authors(path, preset, _entry_of_file(preset), tokenizer, card)


def _from_hub(
  text: str,
  preset: str | None,
  tokenizer: str | Path | None,
  revision: str | None,
) -> Pretrained:
  parts = text.split("/")
  repo, inside = "/".join(parts[:2]), "/".join(parts[2:])
  known = [entry for entry in catalog().values() if entry.hub == repo]
  if inside:
    known = [entry for entry in known if entry.path == inside]
  if len({entry.path for entry in known}) == 1:
    # One file: its averages, unless an entry is asked for by name.
    known = [entry for entry in known if entry.averaged] or known
  if len(known) == 1 and preset is None:
    entry = known[0]
    if revision is not None:
      # The recorded hash is of the pinned revision.
      entry = dataclasses.replace(entry, revision=revision, sha256=None)
    return _from_entry(entry)
  if len(known) > 1 and preset is None:
    raise TokzooError(
      f"{repo} holds several models: name one of "
      f"{', '.join(sorted(entry.name for entry in known))}."
    )
  if preset is None:
    raise TokzooError(
      f"the catalog does not know {text!r}: name the published config as well (preset=...), "
      f"or one of {', '.join(sorted(catalog()))}."
    )
  if not inside:
    raise TokzooError(f"name the file in {repo} too: {repo}/PATH.")
  return _from_file(download(repo, inside, revision), preset, tokenizer)


def _from_authors(
  path: Path,
  preset: str,
  under: str | None,
  tokenizer: str | Path | None,
  card: dict[str, Any],
  averaged: bool = True,
) -> Pretrained:
  """A published file, converted at its first use and kept so (`tokzoo.places.cache_dir`)."""
  config, variables = converted(path, preset, under, averaged)
  return _assemble(config, variables, Card(**card), tokenizer)


def published_config(path: Path, preset: str) -> Any:
  """The config of a published file: its preset, held against what the file says of itself.

  Raises:
    TokzooError: a file that is damaged, or says that it is not of this preset.
  """
  slug, part, config = systems.find_preset(preset)
  check = systems.find_part(slug, part).check_metadata
  if check is None:
    return config
  return systems.resolve(check)(config, read_metadata(path), path.name)


def converted(
  path: Path, preset: str, under: str | None = None, averaged: bool = True
) -> tuple[Any, Any]:
  """Config and variables of a published file: every shape asserted, no key left over or missing.

  The first conversion is kept in the cache, for this very file (its path, size and time of
  change), config and version of tokzoo; `TOKZOO_CACHE` says where. A cache that cannot be
  written, or is damaged, costs a warning and another conversion, nothing else.

  Args:
    path: the file.
    preset: the published config that it was made with.
    under: the entry of a torch file that holds the weights.
    averaged: False: the parameters themselves, where the file holds their averages, too.

  Raises:
    TokzooError: a file that cannot be read, or is not of this preset.
  """
  slug, part, _ = systems.find_preset(preset)
  config = published_config(path, preset)
  header = {"system": slug, "part": part, "config": to_json(config), "preset": preset}
  like = abstract_variables(config)
  about = path.resolve().stat()
  file = str(path.resolve()), about.st_size, about.st_mtime_ns, under, averaged
  key = json.dumps([file, header, version], sort_keys=True)
  name = hashlib.sha256(key.encode()).hexdigest()[:32]
  kept = cache_dir() / "converted" / f"{name}.safetensors"
  if kept.is_file():
    try:
      variables, _ = read_checkpoint(kept)
      _require_fit(variables, like, str(kept))
      return config, variables
    except TokzooError as error:
      warnings.warn(f"converted anew, since {error}", stacklevel=2)
  table = table_of(path, slug, part, config)
  table = table if averaged else table.raw()
  variables = table.to_ours(read_state(path, under), like)
  try:
    write_checkpoint(kept, variables, header)
  except TokzooError as error:
    warnings.warn(f"the converted weights are not kept: {error}", stacklevel=2)
  return config, variables


def table_of(path: str | Path, slug: str, part: str, config: Any) -> Table:
  """The conversion table of a file of a part: a Flax checkpoint has its own.

  Raises:
    TokzooError: a Flax checkpoint, where nobody published one of this part.
  """
  found = systems.find_part(slug, part)
  if Path(path).suffix == ".safetensors" or not is_flax(path):
    return systems.resolve(found.weights)
  return flax_table(slug, part, config, str(path))


def flax_table(slug: str, part: str, config: Any, name: str) -> Table:
  """The table of Flax checkpoints of a part; `name` is of the file, for the error.

  Raises:
    TokzooError: nobody published one of this part.
  """
  found = systems.find_part(slug, part)
  if found.flax is None:
    raise TokzooError(
      f"{name} is a Flax checkpoint, but the weights of {slug} {part} were not published as "
      "one: choose another preset, or .safetensors."
    )
  return systems.resolve(found.flax)(config)


def abstract_variables(config: Any) -> Any:
  """Shapes and dtypes of a model's variables, without making them."""
  module = config.build()
  slug, part = systems.part_of_config(config)
  streams = ("params", "bits", "quantizer", "codebook", "noise")
  rngs = {name: jax.random.key(0) for name in streams}
  if systems.find_part(slug, part).kind == "tokenizer":
    example = _ROOMS[systems.find_system(slug).modality][1]
    return jax.eval_shape(module.init, rngs, example(config))

  def init():
    return module.init(rngs, *config.example(), method=module.loss)

  return jax.eval_shape(init)


def _example_image(config: Any) -> jax.ShapeDtypeStruct:
  side = config.image_size
  return jax.ShapeDtypeStruct((1, side, side, config.channels), jnp.float32)


_ROOMS = {
  "image": (PretrainedTokenizer, _example_image),
  "sound": (PretrainedCodec, example_sound),
}
"""Modality of a tokenizer -> what wraps it, and the shape of an input."""


def _assemble(
  config: Any, variables: Any, card: Card, tokenizer: str | Path | None
) -> Pretrained:
  module = config.build()
  _require_fit(variables, abstract_variables(config), card.name)
  variables = jax.tree.map(jnp.asarray, variables)
  if systems.find_part(card.system, card.part).kind == "tokenizer":
    room = _ROOMS[systems.find_system(card.system).modality][0]
    return room(module, variables, card)
  if hasattr(config, "tokens_of"):
    if tokenizer is not None:
      raise TokzooError(
        f"{card.name} makes its own tokens, but a tokenizer was named, {tokenizer}: leave it out."
      )
    return PretrainedSpeaker(module, variables, card)
  if tokenizer is None:
    raise TokzooError(
      f"{card.name} is a generator, and nothing says whose tokens it makes: pass "
      "tokenizer=..."
    )
  maker = load(tokenizer)
  if not isinstance(maker, PretrainedTokenizer | PretrainedCodec):
    raise TokzooError(
      f"{tokenizer} is not a tokenizer: name the one that made the tokens."
    )
  trained_with = card.header.get("tokenizer_origin")
  if trained_with and trained_with != str(maker.origin):
    raise TokzooError(
      f"{card.name} was trained on the tokens of {trained_with}, but {tokenizer} is "
      f"{maker.origin}: pass the tokenizer it was trained with."
    )
  return PretrainedGenerator(module, variables, card, maker)


def _require_fit(variables: Any, like: Any, name: str) -> None:
  """Raises unless the variables are those of the config, in names, shapes and dtypes."""
  found, wanted = flatten(variables), flatten(like)
  for path in sorted(set(found) | set(wanted)):
    here, there = (
      f"{tree[path].dtype}{list(tree[path].shape)}" if path in tree else "nothing"
      for tree in (found, wanted)
    )
    if here != there:
      raise TokzooError(
        f"{name} holds {here} at {path}, where its config asks for {there}: it was made with "
        "another version of tokzoo; export or train it again with this one."
      )


def _entry_of_file(preset: str) -> str | None:
  """Where in a torch file the weights of a preset lie, as the catalog records it."""
  found = {entry.under for entry in catalog().values() if entry.preset == preset}
  return found.pop() if len(found) == 1 else None


def _kept_origin(run: Path) -> str | None:
  """The tokenizer that a generator's run encoded its data with."""
  path = run / "tokenizer.txt"
  return path.read_text().strip() if path.is_file() else None
