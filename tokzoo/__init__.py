"""tokzoo: one zoo, one contract, every token.

import tokzoo
tokenizer = tokzoo.load("instella-photos-nano")
tokens = tokenizer.encode(pictures)      # uint8[B, H, W, C] or float32 in [-1, 1]
pictures = tokenizer.decode(tokens)
"""

from etils import epy

# Read at first use: the command line answers before jax is there, and settles what jax finds.
with epy.lazy_api_imports(globals()):
  from tokzoo.errors import TokzooError
  from tokzoo.hub import load
  from tokzoo.tokens import Origin, Tokens, load_tokens, save_tokens
  from tokzoo.version import __version__

__all__ = [
  "Origin",
  "Tokens",
  "TokzooError",
  "__version__",
  "load",
  "load_tokens",
  "save_tokens",
]
