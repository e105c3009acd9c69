"""Flow-Omni: the head's path and field, causality, sampling step by step, its losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.cli.experiments import load_experiment
from tokzoo.errors import TokzooError
from tokzoo.generators.flow_omni import PAD, Config
from tokzoo.generators.heads import CodesHead, FlowHead
from tokzoo.tokens import Tokens

TINY = Config(
  mels=6,
  sample_rate_hz=1_600,
  hop=32,
  n_fft=64,
  vocab=11,
  feature_dim=5,
  stack=2,
  width=16,
  layers=2,
  heads=2,
  head_width=16,
  head_blocks=1,
)
MODEL = TINY.build()


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def variables():
  init = jax.jit(
    lambda: MODEL.init(jax.random.key(0), *TINY.example(), method=MODEL.loss)
  )
  made = init()
  # Zero-initialised layers would hide what they do.
  leaves, tree = jax.tree.flatten(made)
  moved = [leaf + 0.1 * draw(*leaf.shape, seed=i) for i, leaf in enumerate(leaves)]
  return jax.tree.unflatten(tree, moved)


FRAMES, TEXT, FEATURES = (
  draw(2, 7, 6), jnp.asarray([[3, 4, 5, PAD, PAD, PAD, PAD]] * 2, jnp.int32), draw(2, 3, 5)
)  # fmt: skip


def test_the_heads_loss_is_that_of_its_path():
  head = FlowHead(3, 8, 1, sigma=0.1)
  x, state, rng = draw(4, 3), draw(4, 5, seed=1), jax.random.key(2)
  variables = head.init(jax.random.key(0), x, jnp.zeros(4), state)
  loss = head.apply(variables, x, state, rng, 2, method=head.loss)
  # The field starts at zero, so the loss is the mean square of the target.
  time_rng, noise_rng = jax.random.split(rng)
  del time_rng
  noise = jax.random.normal(noise_rng, (2, 4, 3))
  by_hand = jnp.square(x[None] - 0.9 * noise).mean((0, -1))
  assert np.allclose(loss, by_hand, rtol=1e-5)


def test_the_head_integrates_from_noise_to_data():
  """With the field of a single data point, Euler arrives there in any number of steps."""

  class Known(FlowHead):
    def __call__(self, x, time, state):
      return (state - x) / jnp.maximum(1 - time[..., None], 1e-6)

  head, target = Known(3), draw(5, 3)
  for steps in (1, 4):
    made = head.apply({}, target, jax.random.key(0), steps, method=head.sample)
    assert np.allclose(made, target, atol=1e-4)


def test_codes_are_drawn_level_after_level():
  """Draws have the frequencies of the teacher-forced logits, of pairs of levels too."""
  head, draws = CodesHead(2, 3, 8, blocks=1, hidden=8), 20_000
  state, ids = draw(1, 5), jnp.asarray([[i, j] for i in range(3) for j in range(3)])
  variables = head.init(jax.random.key(0), state, ids[:1])
  leaves, tree = jax.tree.flatten(variables)
  moved = [leaf + 0.7 * draw(*leaf.shape, seed=i) for i, leaf in enumerate(leaves)]
  variables = jax.tree.unflatten(tree, moved)

  @jax.jit
  def run(variables):
    states = jnp.repeat(state, draws, 0)
    made = head.apply(variables, states, jax.random.key(1), method=head.sample)
    loss = head.apply(variables, ids, jnp.repeat(state, 9, 0), method=head.loss)
    return made, loss, head.apply(variables, jnp.repeat(state, 9, 0), ids)

  made, loss, logits = run(variables)
  found = np.bincount(3 * made[:, 0] + made[:, 1], minlength=9) / draws
  expected = np.exp(-np.asarray(loss))
  assert np.isclose(expected.sum(), 1, atol=1e-5) and expected.max() < 0.6
  assert np.allclose(found, expected, atol=0.015)
  # The first level does not see its own id, the second sees the first.
  assert np.allclose(logits[:, 0], logits[:1, 0], atol=1e-6)
  assert np.allclose(logits[0, 1], logits[2, 1], atol=1e-6)
  assert not np.allclose(logits[0, 1], logits[3, 1], atol=1e-3)


def test_states_do_not_look_ahead(variables):
  run = jax.jit(lambda v, f, t: MODEL.apply(v, f, t, FEATURES, method=MODEL.states))
  states = run(variables, FRAMES, TEXT)
  assert states.shape == (2, 8, 16)
  # Frame 3 is read at step 5, text 2 at step 3.
  frames = run(variables, FRAMES.at[:, 3].add(1.0), TEXT)
  assert np.allclose(frames[:, :5], states[:, :5], atol=1e-5)
  assert not np.allclose(frames[:, 5], states[:, 5], atol=1e-3)
  text = run(variables, FRAMES, TEXT.at[:, 2].set(9))
  assert np.allclose(text[:, :3], states[:, :3], atol=1e-5)
  assert not np.allclose(text[:, 3], states[:, 3], atol=1e-3)


def test_sampling_step_by_step_is_the_teacher_forced_pass(variables):
  condition = {"text": TEXT, "features": FEATURES}

  @jax.jit
  def run(variables):
    tokens = MODEL.apply(
      variables, jax.random.key(3), condition, frames=7, steps=2, method=MODEL.sample
    )
    states = MODEL.apply(variables, tokens.values, TEXT, FEATURES, method=MODEL.states)

    def redraw(module, t):
      key = jax.random.fold_in(jax.random.key(3), t + 1)
      return module.head.sample(states[:, t + 1], key, 2)

    drawn = [MODEL.apply(variables, t, method=redraw) for t in range(7)]
    return tokens, jnp.stack(drawn, 1)

  tokens, drawn = run(variables)
  assert tokens.values.shape == (2, 7, 6) and tokens.mask.shape == (2, 7)
  assert np.allclose(tokens.values, drawn, atol=1e-3)
  # Once it has stopped it stays stopped.
  assert (np.diff(np.asarray(tokens.mask).astype(int), axis=1) <= 0).all()


def test_losses_count_speech_and_text_only(variables):
  mask = jnp.asarray([[True] * 4 + [False] * 3] * 2)
  run = jax.jit(
    lambda v, f, t, m: MODEL.apply(
      v,
      Tokens.from_values(f, mask=m),
      {"text": t},
      jax.random.key(1),
      method=MODEL.loss,
    )
  )
  total, metrics = run(variables, FRAMES, TEXT, mask)
  assert set(metrics) == {"flow", "stop", "text"}
  assert np.isclose(total, sum(metrics.values()), rtol=1e-5)
  _, changed = run(variables, FRAMES.at[:, 5:].add(3.0), TEXT, mask)
  assert np.isclose(changed["flow"], metrics["flow"], rtol=1e-5)
  _, changed = run(variables, FRAMES.at[:, 3].add(3.0), TEXT, mask)
  assert not np.isclose(changed["flow"], metrics["flow"], rtol=1e-3)


def test_frames_of_sound_have_unit_scale():
  tone = 0.3 * jnp.sin(jnp.arange(3_200) / 3)[None, :, None]
  tokens = TINY.tokens_of({"audio": tone})
  assert tokens.values.shape == (1, 101, 6) and np.abs(tokens.values).max() < 4
  with pytest.raises(TokzooError, match="the data has image"):
    TINY.tokens_of({"image": tone})


def test_what_is_refused(variables):
  with pytest.raises(TokzooError, match=r"frames \[B, T, 6\]"):
    wrong = Tokens.from_values(draw(1, 3, 5))
    MODEL.apply(variables, wrong, {}, jax.random.key(0), method=MODEL.loss)
  with pytest.raises(TokzooError, match="pad it to as many"):
    MODEL.apply(variables, FRAMES, TEXT[:, :3], None, method=MODEL.states)
  with pytest.raises(TokzooError, match="give `text` or `features`"):
    MODEL.apply(variables, jax.random.key(0), {}, method=MODEL.sample)


def test_both_heads_are_compared_at_equal_size():
  """The setting of the claims says how many parameters either model has."""
  flow_omni = load_experiment("flow-omni")
  sizes = {}
  for is_discrete in (False, True):
    said = jnp.zeros((1, 2, 4), jnp.int32) if is_discrete else jnp.zeros((1, 2, 20))
    task = flow_omni._Speaking(flow_omni.Speaker(is_discrete))
    like = jax.eval_shape(task.init, jax.random.key(0), {"said": said})
    sizes[is_discrete] = sum(leaf.size for leaf in jax.tree.leaves(like))
  assert abs(sizes[True] / sizes[False] - 1) < 0.01
  setting = flow_omni.CLAIMS[2].setting
  assert all(f"{size:,}" in setting for size in sizes.values())


def test_the_codec_of_the_claims_quantizes():
  """Each level takes away error, and ids decode to what they are of."""
  flow_omni, rng = load_experiment("flow-omni"), np.random.default_rng(0)
  frames = rng.normal(size=(20, 50, 20)).astype(np.float32)
  codec = flow_omni.Codec.of(frames.reshape(-1, 20), 0)
  ids = codec.encode(frames)
  assert ids.shape == (20, 50, 4) and ids.min() >= 0 and ids.max() < 64
  errors = [
    np.square(flow_omni.Codec(codec.books[:q]).decode(ids[..., :q]) - frames).mean()
    for q in (1, 2, 3, 4)
  ]
  assert all(b < 0.9 * a for a, b in zip([1.0, *errors], errors, strict=False))
