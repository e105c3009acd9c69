"""The blurred discriminator as TiTok has it (parity: tests/parity/titok.py), and Open-MAGVIT2."""

import jax
import numpy as np

from tokzoo.nn.blur_discriminator import BlurDiscriminator


def test_the_door_and_the_pool_are_titoks_alone():
  titok = BlurDiscriminator(32, 1)
  plain = BlurDiscriminator(32, 1, pool=None, is_unit_range=False)
  image = np.random.default_rng(0).uniform(0, 1, (2, 32, 32, 3)).astype(np.float32)
  variables = titok.init(jax.random.key(0), image)
  logits = plain.apply(variables, image)
  assert logits.shape == (2, 16, 16, 1)
  # At 32 pixels and one stage the pool has nothing to do.
  np.testing.assert_allclose(titok.apply(variables, 2 * image - 1), logits, atol=1e-5)
  large = np.zeros((1, 48, 64, 3), np.float32)
  assert plain.apply(variables, large).shape == (1, 24, 32, 1)
  assert titok.apply(variables, large).shape == (1, 16, 16, 1)
