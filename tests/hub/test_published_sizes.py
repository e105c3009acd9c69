"""Published checkpoints at full size: a file in the authors' layout on the hub, random weights.

`pytest -n 0 -s -m slow tests/hub/test_published_sizes.py` prints time and peak memory.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tokzoo.hub.catalog import Entry, find_entry
from tokzoo.hub.loading import abstract_variables
from tokzoo.systems import find_part, find_preset, resolve
from tokzoo.weights import write_safetensors

COMMIT = "0123456789abcdef0123456789abcdef01234567"

# The numbers that their authors print, in millions, as finely as they print them.
PUBLISHED = {
  "titok-l32": 641,
  "llamagen-vq-ds16-c2i": 72,
  "open-magvit2-256-262144": 115,
  "flextok-d12-d12-in1k": 341,
}

ROUND_TRIP = """
import json, resource, sys, time
import numpy as np
import tokzoo

def peak():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

start = time.perf_counter()
model = tokzoo.load(sys.argv[1])
loaded, held = time.perf_counter(), peak()
side = model.config.image_size
image = np.random.default_rng(0).uniform(-1, 1, (1, side, side, 3)).astype(np.float32)
tokens = model.encode(image)
encoded, after_encode = time.perf_counter(), peak()
again = np.asarray(model.decode(tokens))
print(json.dumps({
  "parameters": model.num_parameters,
  "kind": tokens.kind,
  "shape": list(tokens.array.shape),
  "picture": list(again.shape),
  "finite": bool(np.isfinite(again).all()),
  "spread": float(again.std()),
  "load_seconds": loaded - start,
  "encode_seconds": encoded - loaded,
  "decode_seconds": time.perf_counter() - encoded,
  "peak_gib": {"load": held, "encode": after_encode, "decode": peak()},
}))
"""


def publish(entry: Entry, cache: Path) -> int:
  """Puts a file of the entry's keys, shapes and kind where huggingface_hub looks for it.

  Returns:
    The number of its bytes.
  """
  assert entry.hub and entry.path and entry.preset
  config = find_preset(entry.preset)[2]
  table = resolve(find_part(entry.system, entry.part).weights)
  shapes = table.published_shapes(abstract_variables(config))
  rng, arrays = np.random.default_rng(0), {}
  for key, shape in shapes.items():
    size = np.prod(shape[1:]) if len(shape) > 1 else 1
    draw = rng.standard_normal(shape, np.float32)
    # Matrices keep the scale of what they pass on; scales of norms are about one.
    draw = draw / np.sqrt(size) if len(shape) > 1 else 0.1 * draw + 0.5
    arrays[key] = draw.astype(np.float32)
  folder = cache / f"models--{entry.hub.replace('/', '--')}"
  path = folder / "snapshots" / COMMIT / entry.path
  path.parent.mkdir(parents=True)
  (folder / "refs").mkdir()
  (folder / "refs" / (entry.revision or "main")).write_text(COMMIT)
  if path.suffix == ".safetensors":
    write_safetensors(path, arrays)
  else:
    torch = pytest.importorskip("torch")
    state = {key: torch.from_numpy(array) for key, array in arrays.items()}
    torch.save({entry.under: state} if entry.under else state, path)
  return path.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_checkpoint_at_full_size(name, tmp_path):
  size = publish(find_entry(name), tmp_path / "hub")
  environment = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_CACHE": str(tmp_path / "hub"),
    "TOKZOO_CACHE": str(tmp_path / "cache"),
  }
  found = []
  for _ in range(2):  # converted, then read from the cache
    done = subprocess.run(
      [sys.executable, "-c", ROUND_TRIP, name],
      env=environment,
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"\n{name}: a file of {size / 2**30:.2f} GiB; {found[-1]}")
  first, again = found
  assert round(first["parameters"] / 1e6) == PUBLISHED[name]
  assert first["finite"] and first["spread"] > 1e-3
  side = find_preset(find_entry(name).preset)[2].image_size
  assert first["picture"] == [1, side, side, 3]
  assert again["spread"] == first["spread"]
  assert again["load_seconds"] < first["load_seconds"]
  # The file, our copy of it and what the pass needs: never the weights many times over.
  assert max(first["peak_gib"].values()) < 4 * size / 2**30 + 4
