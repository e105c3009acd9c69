"""Binary diffusion over the bits of Instella-T2I's tokens (arXiv 2506.21022)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from tokzoo.generators.instella_t2i.shared import (
  BLOCK,
  PATH,
  SHARED_WEIGHTS,
  Attention,
  Condition,
  Config,
  ContextEmbedder,
  Uniform,
  check_sampling,
  drop_classes,
  guide,
  guided_condition,
  uniform_draws,
)
from tokzoo.nn.layers import MLP
from tokzoo.tokens import Tokens
from tokzoo.weights import Table, linear_rules


@dataclasses.dataclass(frozen=True)
class DiffusionConfig(Config):
  """Sizes of the diffusion generator; the defaults are the published ones."""

  def build(self) -> "InstellaDiffusion":
    return InstellaDiffusion(self)


class DiffusionBlock(nn.Module):
  """adaLN block (DiT) whose attention also sees the condition."""

  config: DiffusionConfig

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B L D"],
    time: Float[Array, "B D"],
    context: Float[Array, "B T C"],
    mask: Bool[Array, "B 1 1 K"],
  ) -> Float[Array, "B L D"]:
    c = self.config
    modulation = _dense(6 * c.width, "modulation")(nn.silu(time))[:, None, :]
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(
      modulation, 6, axis=-1
    )
    positions = self.param("pos_emb", nn.initializers.zeros, (1, c.num_tokens, c.width))
    h = _layer_norm(c, x) * (1 + scale) + shift + positions.astype(x.dtype)
    context = _dense(c.width, "proj_cond")(context)
    attention = Attention(c.head_dim, c.width, c.norm_eps, name="attn")
    memory = attention.remember(jnp.concatenate([context, h], axis=1))
    x = x + gate * attention(h, memory, mask)
    h = _layer_norm(c, x) * (1 + mlp_scale) + mlp_shift
    x = x + mlp_gate * MLP(int(c.width * c.mlp_ratio), name="mlp")(h)
    return checkpoint_name(x, "block")


class InstellaDiffusion(nn.Module):
  """Binary diffusion (contract: `tokzoo.contract.Generator`)."""

  config: DiffusionConfig

  @nn.compact
  def __call__(
    self, x_t: Float[Array, "B L m"], t: Float[Array, "B"], condition: Condition
  ) -> Float[Array, "B L m"]:
    """The logit that each bit of `x_t` was flipped, at time `t` in [0, 1]."""
    c = self.config
    text = ContextEmbedder(c, name="context")(condition)
    # The condition has the dtype that the run computes in; bits and times follow it.
    dtype = text.features.dtype
    # A plain number goes in: no sinusoids.
    time = _dense(c.width, "time_1")(t[:, None].astype(dtype))
    time = _dense(c.width, "time_2")(nn.silu(time))
    x = _dense(c.width, "x_embedder")(x_t.astype(dtype))
    seen = jnp.concatenate([text.mask, jnp.ones(x.shape[:2], bool)], axis=1)[
      :, None, None
    ]
    for i in range(c.layers):
      block = DiffusionBlock(c, name=f"blocks_{i}")
      x = block(x, time, text.features[i].astype(x.dtype), seen)
    modulation = _dense(2 * c.width, "modulation_out")(nn.silu(time))[:, None, :]
    # The last layer's order is (scale, shift), unlike the blocks'.
    scale, shift = jnp.split(modulation, 2, axis=-1)
    x = _layer_norm(c, x) * (1 + scale) + shift
    return _dense(c.bits, "proj_out")(x)

  def loss(
    self, tokens: Tokens, condition: Condition, rng: PRNGKeyArray
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean binary cross-entropy of the clean bits at t ~ sigmoid(N(0, 1)), in nats."""
    time_rng, noise_rng, drop_rng = jax.random.split(rng, 3)
    bits = tokens.unpacked().astype(jnp.float32)
    t = nn.sigmoid(jax.random.normal(time_rng, bits.shape[:1]))
    x_t = add_noise(bits, t, jax.random.uniform(noise_rng, bits.shape))
    condition = drop_classes(self.config, condition, drop_rng)
    logits = self.bit_logits(x_t, t, condition)
    loss = optax.sigmoid_binary_cross_entropy(logits, bits).mean()
    return loss, {"bit_accuracy": ((logits > 0) == (bits > 0.5)).mean()}

  def bit_logits(self, x_t: Array, t: Array, condition: Condition) -> Array:
    """Logits of the clean bits: a flip speaks against what `x_t` shows. Float32."""
    flip = self(x_t, t, condition).astype(jnp.float32)
    return (1 - 2 * x_t) * flip

  def sample(
    self,
    rng: PRNGKeyArray | None,
    condition: Condition,
    *,
    null: Condition | None = None,
    steps: int = 20,
    guidance: float = 7.5,
    temperature: float = 1.0,
    rho: float = 1.0,
    protocol: int = 1,
    uniform: Uniform | None = None,
  ) -> Tokens:
    """Draws tokens, from fair coin flips to clean bits.

    Args:
      rng: key of every draw; not needed with `uniform`.
      condition: what to draw for, B rows.
      null: the unconditional rows that guidance leads away from: features of the empty
        prompt. Class models make their own.
      steps: network calls; t_i = (1 - i / steps) ** rho.
      guidance: s in (1 + s) conditional - s unconditional; 0 needs no `null`.
      temperature: divides the logits.
      rho: bends the times.
      protocol: 1 draws x ~ Bernoulli((1 - t') p + t'/2); 2 weighs by the step from x (both
        as in the source).
      uniform: draw number k -> float32[B, L, m], in place of `rng` (draw 0 is the start).

    Raises:
      TokzooError: settings out of range, or guidance on text without `null`.
    """
    check_sampling(steps, temperature, protocol)
    c = self.config
    batch = jax.tree.leaves(condition)[-1].shape[0]
    uniform = uniform or uniform_draws(rng, (batch, c.num_tokens, c.bits))
    both = guided_condition(c, condition, null, guidance)
    # A loop of jax calls a module that is not bound to an outer trace.
    module, variables = self.unbind()

    def clean_probability(x, t):
      rows = x.shape[0]
      doubled = x if guidance == 0 else jnp.concatenate([x, x])
      times = jnp.full(doubled.shape[:1], t)
      raw = jnp.asarray(module.apply(variables, doubled, times, both))
      flip = nn.sigmoid(guide(raw / temperature, rows, guidance))
      return x * (1 - flip) + (1 - x) * flip

    def step(x, scanned):
      k, t, t_next = scanned
      p = clean_probability(x, t)
      if protocol == 1:
        p_next = p * (1 - t_next) + 0.5 * t_next
      else:
        on = (p * (1 - t_next) + 0.5 * t_next) * (x - (t - t_next) * (x - 0.5))
        off_x = 1 - x
        off = ((1 - p) * (1 - t_next) + 0.5 * t_next) * (
          off_x - (t - t_next) * (off_x - 0.5)
        )
        p_next = on / (on + off)
      return (uniform(k) < p_next).astype(jnp.float32), None

    times = (1.0 - jnp.arange(steps, dtype=jnp.float32) / steps) ** rho
    x = (uniform(0) < 0.5).astype(jnp.float32)
    draws = jnp.arange(1, steps)
    x, _ = jax.lax.scan(step, x, (draws, times[:-1], times[1:]))
    return Tokens.from_bits(clean_probability(x, times[-1]) > 0.5)


def add_noise(
  bits: Float[Array, "B L m"], t: Float[Array, "B"], uniform: Float[Array, "B L m"]
) -> Float[Array, "B L m"]:
  """x_t: each bit is replaced by a fair coin with probability t."""
  t = t[:, None, None]
  return (uniform < (1 - t) * bits + 0.5 * t).astype(jnp.float32)


def _dense(features: int, name: str) -> nn.Dense:
  """A linear layer with the diffusion model's published initialisation."""
  return nn.Dense(features, kernel_init=nn.initializers.xavier_uniform(), name=name)


def _layer_norm(config: DiffusionConfig, x: Array) -> Array:
  """LayerNorm without weights."""
  norm = nn.LayerNorm(epsilon=config.norm_eps, use_bias=False, use_scale=False)
  return norm(x)


PRESETS = {"instella-diffusion": DiffusionConfig()}

DIFFUSION_WEIGHTS = Table(
  rules=(
    *SHARED_WEIGHTS,
    *linear_rules(f"{BLOCK}.norm1.linear", f"{PATH}/modulation"),
    *linear_rules(f"{BLOCK}.ff.net.0.proj", f"{PATH}/mlp/up_proj"),
    *linear_rules(f"{BLOCK}.ff.net.2", f"{PATH}/mlp/down_proj"),
    *linear_rules("norm_out.linear", "params/modulation_out"),
  )
)
