"""One-D-Piece: prefixes of three lengths, and the first stage with a fixed cut."""

import jax

from tests.parity.base import Comparison, applied, compiled
from tests.parity.maskgit_vqgan import channels_first
from tests.parity.titok import (
  convert,
  cross_entropy,
  gradients,
  make_settings,
  quantized_tensors,
)
from tokzoo.nn.prefix import prefix_mask
from tokzoo.tokenizers.image.one_d_piece import WEIGHTS, Config


def compare_one_d_piece(config, tensors):
  module, variables, image = convert(Config(**make_settings(config)), tensors)
  out = quantized_tensors(config, module, variables, image)
  del out["out/commitment_loss"], out["out/codebook_loss"]

  for length in config["keep"]:
    # As a user decodes a prefix: by its real length.
    tokens = applied(module, variables, image, num_tokens=length, method="encode")
    assert tokens.length == length
    made = applied(module, variables, tokens, method="decode")
    _, logits = applied(
      module,
      variables,
      tokens.ids,
      method=lambda m, ids: m.codes_to_image(m.quantizer.ids_to_codes(ids)),
    )
    out[f"out/decoder_keep{length}"] = channels_first((made + 1) / 2)
    out[f"out/decoder_logits_keep{length}"] = channels_first(logits)

  kept = prefix_mask(config["train_keep"], config["K"])

  def stage1(module, image):
    quantized = module.quantize(image, True)
    return module.decoder(quantized.values, kept), quantized.losses

  def loss(variables):
    logits, losses = module.apply(variables, image, method=stage1)
    nll = cross_entropy(logits, tensors["in/target_codes"])
    commitment = config["commitment_cost"] * losses["commitment"]
    return nll + commitment + losses["codebook"], nll

  (value, nll), grads = compiled(jax.value_and_grad(loss, has_aux=True))(variables)
  out |= {"out/stage1_loss": value, "out/stage1_cross_entropy": nll}
  return out | gradients(WEIGHTS, grads, tensors)


COMPARISONS = {
  # Group norms of few, nearly constant channels in a tiny random pixel decoder.
  "one-d-piece": Comparison(compare_one_d_piece, noisy={r"out/decoder_keep\d+": 1e-3}),
}
