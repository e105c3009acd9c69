"""Losses of sound: spectra beside librosa's and torch's, the balancer, distillation, critics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.base import compare
from tests.parity.test_parity import DATA, changed
from tokzoo.errors import TokzooError
from tokzoo.losses import balancer, distillation, feature_matching, spectral
from tokzoo.losses.adversarial import (
  least_squares_discriminator,
  least_squares_generator,
  margin_discriminator,
  margin_generator,
)
from tokzoo.nn.sound_critics import (
  MSSTFT,
  Critics,
  MultiBand,
  MultiPeriod,
  MultiResolution,
  MultiScale,
)
from tokzoo.nn.sound_critics.layers import NormConv
from tokzoo.nn.spectra import Mel, frames, hann, mel_filters, stft
from tokzoo.weights import write_safetensors


def noise(*shape, seed=0):
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(0.1 * values, jnp.float32)


# ---------------------------------------------------------------- spectra


def test_mel_filters_are_librosas_and_torchaudios():
  # Sums along bins and single entries of librosa 0.11's filters.mel (its htk=True with
  # norm="slaney" is torchaudio's MelScale).
  stored = {
    (24000, 1024, 64, "slaney"): (
      [3, 32, 62],
      [0.04380491, 0.04253524, 0.04265814],
      [9, 91, 460],
      [0.0186573, 0.008133439, 0.001681948],
    ),
    (16000, 1024, 80, "htk"): (
      [3, 40, 78],
      [0.06870165, 0.06393841, 0.06397682],
      [6, 116, 478],
      [0.03894211, 0.0118474, 0.003830441],
    ),
    (44100, 256, 40, "slaney"): (
      [3, 20, 38],
      [0.005452539, 0.005922336, 0.005804332],
      [2, 17, 105],
      [0.005452539, 0.003126492, 0.0005340542],
    ),
  }
  for (rate, n_fft, mels, scale), (columns, sums, peaks, values) in stored.items():
    filters = mel_filters(rate, n_fft, mels, scale)
    assert np.allclose(filters.sum(0)[columns], sums, rtol=1e-4)
    assert filters.argmax(0)[columns].tolist() == peaks
    assert np.allclose(filters[peaks, columns], values, rtol=1e-4)


def test_filters_cover_what_they_should():
  plain = mel_filters(16_000, 512, 40, "htk", is_normalized=False)
  assert plain.shape == (257, 40) and plain.min() == 0 and 0.8 < plain.max() <= 1
  # Between the first and the last centre, neighbouring triangles add to 1.
  inner = plain.sum(1)[8:240]
  assert np.allclose(inner, 1, atol=1e-5)


@pytest.mark.torch
def test_filters_and_spectra_beside_librosa_and_torch():
  librosa, torch = pytest.importorskip("librosa"), pytest.importorskip("torch")
  for rate, n_fft, mels in ((24_000, 2048, 80), (16_000, 128, 320), (44_100, 512, 40)):
    for htk in (False, True):
      theirs = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=mels, htk=htk)
      ours = mel_filters(rate, n_fft, mels, "htk" if htk else "slaney")
      assert np.abs(theirs.T - ours).max() < 1e-6
  x = noise(2, 5000)
  for n_fft, hop, win, center in (
    (1024, 256, 1024, True),
    (512, 50, 240, True),
    (1024, 240, 1024, False),
  ):
    theirs = torch.stft(
      torch.tensor(np.asarray(x)), n_fft, hop, win, torch.hann_window(win),
      center=center, return_complex=True,
    )  # fmt: skip
    ours = stft(x, n_fft, hop, win, center)
    assert np.abs(theirs.numpy().transpose(0, 2, 1) - np.asarray(ours)).max() < 1e-4


def test_frames_of_any_hop():
  x = jnp.arange(40, dtype=jnp.float32).reshape(2, 20)
  for size, hop in ((8, 2), (8, 3), (5, 7), (20, 1)):
    cut = np.asarray(frames(x, size, hop))
    starts = range(0, 20 - size + 1, hop)
    assert np.array_equal(cut[1], [np.arange(20 + s, 20 + s + size) for s in starts])
  with pytest.raises(TokzooError, match="window of 21 samples"):
    frames(x, 21, 4)


def test_a_tone_is_where_it_belongs():
  times = np.arange(16_000) / 16_000
  x = jnp.asarray(0.5 * np.sin(2 * np.pi * 1000 * times), jnp.float32)[None]
  spectrum = np.abs(np.asarray(stft(x, 512, 128)))
  assert (spectrum.argmax(-1) == 32).all()
  assert np.allclose(spectrum.max(-1), 0.25 * hann(512).sum(), rtol=1e-3)
  normal = np.abs(np.asarray(stft(x, 512, 128, normalized=True)))
  assert np.allclose(normal * np.sqrt((hann(512) ** 2).sum()), spectrum, atol=1e-4)


def test_published_settings():
  encodec, dac = spectral.encodec(24_000), spectral.dac(44_100)
  speech = spectral.speechtokenizer(16_000)
  assert [m.n_fft for m in encodec.mels] == [32, 64, 128, 256, 512, 1024, 2048]
  assert {m.num_mels for m in encodec.mels} == {64} and encodec.squares == 1.0
  assert [(m.n_fft, m.hop, m.num_mels) for m in dac.mels][::3] == [
    (32, 8, 5), (256, 64, 40), (2048, 512, 320)
  ]  # fmt: skip
  assert [(m.n_fft, m.hop) for m in speech.mels] == [
    (1024, 240), (512, 120), (256, 60), (128, 30)
  ]  # fmt: skip
  assert speech.weights == (45.0, 1.0, 1.0, 1.0)


def test_mel_losses_are_the_sums_that_they_say():
  x, y = noise(2, 4096, 1), noise(2, 4096, 1, seed=1)
  loss = spectral.dac(16_000)
  by_hand = 0.0
  for size, mels in ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160),
                     (2048, 320)):  # fmt: skip
    logs = []
    for wave in (x, y):
      padded = np.pad(np.asarray(wave)[..., 0], ((0, 0), (size // 2,) * 2), "reflect")
      cut = np.stack([padded[:, s : s + size] for s in
                      range(0, padded.shape[1] - size + 1, size // 4)], 1)  # fmt: skip
      power = np.abs(np.fft.rfft(cut * hann(size)))
      logs.append(np.log10(np.maximum(power @ mel_filters(16_000, size, mels), 1e-5)))
    by_hand += np.abs(logs[0] - logs[1]).mean()
  assert np.allclose(jax.jit(loss)(x, y), by_hand, rtol=1e-4)
  # Vocos's: the filters as high as 1, magnitudes below 1e-7 cut off.
  loud, faint, logs = x, 1e-9 * y, []
  for wave in (loud, faint):
    padded = np.pad(np.asarray(wave)[..., 0], ((0, 0), (512, 512)), "reflect")
    starts = range(0, padded.shape[1] - 1023, 256)
    cut = np.stack([padded[:, s : s + 1024] for s in starts], 1)
    filters = mel_filters(24_000, 1024, 100, "htk", False)
    mel = np.abs(np.fft.rfft(cut * hann(1024))) @ filters
    logs.append(np.log(np.maximum(mel, 1e-7)))
  found = jax.jit(spectral.wavtokenizer(24_000))(loud, faint)
  assert np.allclose(found, np.abs(logs[0] - logs[1]).mean(), rtol=1e-4)
  speech = spectral.speechtokenizer(16_000)
  one = Mel(1024, 240, 80, "htk", "hop", floor=1e-9, log="e")
  assert one(x, 16_000).shape == (2, 1 + (4096 - 240) // 240, 80)
  assert float(speech(x, y)) > 45 * float(
    jnp.abs(one(x, 16_000) - one(y, 16_000)).mean()
  )


@pytest.mark.parametrize(
  "loss", [spectral.encodec(16_000), spectral.dac(16_000), spectral.STFTLoss()]
)
def test_spectral_losses_are_zero_at_the_original_and_their_gradient_finite(loss):
  x = noise(1, 3000, 2)
  value, gradient = jax.jit(jax.value_and_grad(lambda y: loss(x, y)))(x)
  assert float(value) < 1e-7 and bool(jnp.isfinite(gradient).all())
  silent = jnp.zeros_like(x)
  value, gradient = jax.jit(jax.value_and_grad(lambda y: loss(x, y)))(silent)
  assert float(value) > 0.1 and bool(jnp.isfinite(gradient).all())
  # A stereo sound is two sounds.
  swapped = jax.jit(loss)(x[..., ::-1], silent)
  assert np.allclose(swapped, value, rtol=1e-5)
  with pytest.raises(TokzooError, match="one shape"):
    loss(x, x[:, 1:])


# ---------------------------------------------------------------- balancer


def test_the_balancer_gives_each_loss_its_share():
  g = {"mel": 1000.0 * noise(4, 50), "l1": 1e-4 * noise(4, 50, seed=1)}
  weights = {"mel": 3.0, "l1": 1.0}
  state = balancer.first_state(weights)
  sent, state, norms = balancer.balance(g, weights, state, decay=0.9)
  share = sum(
    w / 4 * g[n] / np.linalg.norm(g[n], axis=1).mean() for n, w in weights.items()
  )
  assert np.allclose(sent, share, rtol=1e-5)
  # The average is bias-corrected: after a second step of twice the norm, (0.9 + 2) / 1.9.
  first = {name: float(value) for name, value in norms.items()}
  doubled = {name: 2 * value for name, value in g.items()}
  _, _, norms = balancer.balance(doubled, weights, state, decay=0.9)
  for name, before in first.items():
    assert np.allclose(float(norms[name]) / before, 2.9 / 1.9, rtol=1e-5)
  # Scaling a loss changes nothing.
  louder = {**g, "l1": 1e6 * g["l1"]}
  again, _, _ = balancer.balance(louder, weights, balancer.first_state(weights))
  assert np.allclose(again, sent, rtol=1e-4, atol=1e-7)


def test_what_is_sent_back_is_the_gradient():
  x, wanted = noise(2, 9, 1), noise(2, 9, 1, seed=3)
  assert np.array_equal(jax.grad(balancer.sent_back)(x, wanted), wanted)
  assert not np.any(jax.grad(balancer.sent_back, 1)(x, wanted))


# ---------------------------------------------------------------- distillation


def test_distillation_by_hand_and_its_invariances():
  feature, teacher = noise(2, 6, 5), noise(2, 7, 5, seed=1)
  f, t = np.asarray(feature), np.asarray(teacher)[:, :6]
  cosine = (f * t).sum(1) / np.linalg.norm(f, axis=1) / np.linalg.norm(t, axis=1)
  by_hand = np.log1p(np.exp(-cosine)).mean()
  assert np.allclose(distillation.d_axis(feature, teacher), by_hand, rtol=1e-6)
  scales = jnp.asarray([1.0, 2.0, 0.1, 7.0, 3.0])[None, None]
  scaled = distillation.d_axis(scales * feature, teacher)
  assert np.allclose(scaled, by_hand, rtol=1e-5)
  longer = jnp.concatenate([teacher, noise(2, 9, 5, seed=2)], 1)
  assert distillation.d_axis(feature, longer) == distillation.d_axis(feature, teacher)
  over = (f * t).sum(2) / np.linalg.norm(f, axis=2) / np.linalg.norm(t, axis=2)
  along = np.abs(f - t).mean() + 2 * np.log1p(np.exp(-over)).mean()
  assert np.allclose(distillation.t_axis(feature, teacher, 2.0), along, rtol=1e-6)


def test_combined_teachers():
  feature, one, two = noise(2, 6, 5), noise(2, 6, 5, seed=1), noise(2, 6, 5, seed=2)
  each = [distillation.d_axis(feature, t) for t in (one, two)]
  assert np.allclose(distillation.combined(feature, (one, two)), sum(each) / 2)
  weighed = distillation.combined(feature, (one, two), (0.8, 0.2))
  assert np.allclose(weighed, 0.8 * each[0] + 0.2 * each[1])
  with pytest.raises(TokzooError, match="1 weights came for 2"):
    distillation.combined(feature, (one, two), (1.0,))
  with pytest.raises(TokzooError, match="dimensions must agree"):
    distillation.d_axis(feature, one[..., :4])


# ---------------------------------------------------------------- critics


def test_feature_matching_in_both_forms():
  real, fake = (
    [[noise(2, 5), noise(3)], [noise(4)]],
    [[noise(2, 5, seed=1), noise(3)], [noise(4, seed=2)]],
  )
  r, f = [m for d in real for m in d], [m for d in fake for m in d]
  each = [np.abs(np.asarray(a - b)).mean() for a, b in zip(r, f, strict=True)]
  assert np.allclose(feature_matching.absolute(real, fake, 2.0), 2 * sum(each))
  shares = [e / np.abs(np.asarray(a)).mean() for e, a in zip(each, r, strict=True)]
  assert np.allclose(feature_matching.relative(real, fake), np.mean(shares))
  gradient = jax.grad(lambda r: feature_matching.absolute(r, fake))(real)
  assert not any(np.any(g) for g in jax.tree.leaves(gradient))


def test_least_squares_and_margins():
  real, fake = jnp.asarray([2.0, 0.0]), jnp.asarray([-2.0, 1.0])
  assert least_squares_discriminator(real, fake) == 1.0 + 2.5
  assert least_squares_generator(fake) == 4.5
  assert margin_discriminator(real, fake) == 0.5 + 1.0
  assert margin_generator(fake) == 1.5


def test_the_first_msstft_convolution_has_no_norm_and_a_broken_one_goes_red(tmp_path):
  path = DATA / "dm-codec-msstft-disc.safetensors"
  rows = compare(path)
  assert len(rows) == 13 and all(row.passed for row in rows)
  other, tensors, metadata = changed(path, tmp_path)
  key = "param/discriminators.1.convs.2.conv.weight_g"
  write_safetensors(other, tensors | {key: 1.01 * tensors[key]}, metadata)
  assert not all(row.passed for row in compare(other))


SMALL = {
  "period": MultiPeriod((2, 3), (4, 6, 6, 8, 8)),
  "scale": MultiScale((4, 4, 8, 8, 8, 8, 8), groups=4),
  "band": MultiBand((32, 16), width=4, bands=((0.0, 0.4), (0.4, 1.0))),
  "resolution": MultiResolution((32, 16), width=4, conditions=3),
}


@pytest.mark.parametrize("name", SMALL)
def test_critics_judge_waves_that_fill_no_frame(name):
  module, wave = SMALL[name], noise(2, 301, 1)
  found, variables = jax.jit(module.init_with_output)(jax.random.key(0), wave)
  assert len(found) == {"scale": 3}.get(name, 2)
  for verdict in found:
    assert verdict.logits.shape[0] == 2 and verdict.logits.shape[-1] == 1
    assert np.array_equal(verdict.maps[-1], verdict.logits)
  assert ("spectral" in variables) == (name == "scale")


@pytest.mark.parametrize("name", SMALL)
def test_what_a_critic_says_leads_back_to_the_wave(name):
  module, wave = SMALL[name], noise(2, 301, 1)

  def says(wave, variables):
    return sum(jnp.sum(verdict.logits**2) for verdict in module.apply(variables, wave))

  def gradient(wave):
    variables = module.init(jax.random.key(0), wave)
    return jax.grad(says)(wave, variables)

  assert float(jnp.abs(jax.jit(gradient)(wave)).max()) > 0


def test_critics_together_forget_level_and_offset_where_asked():
  both = Critics((MultiPeriod((2, 3), (4, 4)), MultiPeriod((5,), (4, 4))), peak=0.8)
  wave = noise(1, 400, 1)
  variables = jax.jit(both.init)(jax.random.key(0), wave)
  run = jax.jit(lambda x: [v.logits for v in both.apply(variables, x)])
  found, other = run(wave), run(0.3 * wave + 0.1)
  assert len(found) == 3
  assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(found, other, strict=True))


def test_a_whole_period_more_and_a_map_less():
  """DAC's critic fills up a wave that lacks nothing; that of Vocos keeps its first map to itself."""
  plain, wave = MultiPeriod((3, 4), (4, 4)), noise(1, 300, 1)
  variables = jax.jit(plain.init)(jax.random.key(0), wave)

  def shapes(**options):
    found = plain.clone(**options).apply(variables, wave)
    return [[m.shape[1] for m in verdict.maps] for verdict in found]

  # 300 / 3 and 300 / 4 samples, every third of them, then all.
  assert shapes() == [[34, 34, 34], [25, 25, 25]]
  assert shapes(always_pads=True) == [[34, 34, 34], [26, 26, 26]]
  assert shapes(skips_first=True) == [[34, 34], [25, 25]]
  longer = jnp.pad(wave, ((0, 0), (0, 4), (0, 0)), mode="reflect")
  other = plain.clone(periods=(4,), always_pads=True)
  theirs = other.apply({"params": {"period_4": variables["params"]["period_4"]}}, wave)
  ours = plain.apply(variables, longer)[1]
  np.testing.assert_allclose(theirs[0].logits, ours.logits, rtol=1e-6)


def test_channels_apart_are_judged_as_sounds_of_their_own():
  apart, wave = MSSTFT((32,), width=2, dilations=(1,), apart=True), noise(3, 200, 2)
  found, variables = jax.jit(apart.init_with_output)(jax.random.key(0), wave)
  # Real and imaginary part of one channel.
  assert variables["params"]["scale_0"]["conv_0"]["kernel"].shape[-2] == 2
  assert found[0].logits.shape[0] == 6
  alone = apart.apply(variables, wave[..., 1:])[0].logits
  np.testing.assert_allclose(found[0].logits[1::2], alone, rtol=1e-4, atol=1e-6)


def test_a_condition_adds_its_product_with_the_features():
  both = Critics((MultiBand((16,), 2), SMALL["resolution"], MultiPeriod((2,), (2, 3))))
  wave = noise(2, 301, 1)
  variables = jax.jit(both.init)(jax.random.key(0), wave)
  assert both.conditions == 3 and MultiPeriod().conditions == 0
  tables = jax.tree.map(jnp.zeros_like, variables)["params"]["networks_1"]
  assert tables["resolution_16"]["condition"]["table"].shape == (3, 4)

  def run(variables, condition):
    return both.apply(variables, wave, condition)

  # The table starts at 0: no condition says anything.
  start = run(variables, jnp.int32(2))
  for a, b in zip(run(variables, None), start, strict=True):
    np.testing.assert_array_equal(a.logits, b.logits)
  assert [verdict.kind for verdict in start] == [0, 1, 1, 2]
  params = jax.tree.map(lambda x: x, variables["params"])
  entry = np.arange(1, 5, dtype=np.float32)
  table = np.zeros((3, 4), np.float32)
  table[2] = entry
  params["networks_1"]["resolution_16"]["condition"]["table"] = jnp.asarray(table)
  told, other = (run({"params": params}, jnp.int32(i)) for i in (2, 1))
  added = np.asarray(told[2].logits - start[2].logits)[..., 0]
  np.testing.assert_allclose(added, np.asarray(told[2].maps[-2]) @ entry, atol=1e-5)
  np.testing.assert_array_equal(other[2].logits, start[2].logits)
  np.testing.assert_array_equal(told[1].logits, start[1].logits)


def test_the_spectral_norm_is_the_largest_singular_value():
  module, x = NormConv(6, (5,), norm="spectral"), noise(1, 5, 3)
  variables = module.init(jax.random.key(0), x)

  @jax.jit
  def steps(variables):
    def one(kept, _):
      _, new = module.apply({**variables, "spectral": kept}, x, mutable=["spectral"])
      return new["spectral"], None

    return jax.lax.scan(one, variables["spectral"], None, length=100)[0]

  kept = {**variables, "spectral": steps(variables)}
  kernel = np.asarray(variables["params"]["kernel"])
  largest = np.linalg.svd(kernel.reshape(-1, 6).T)[1][0]
  bias = np.asarray(variables["params"]["bias"])
  plain = np.einsum("btc,tcd->bd", np.asarray(x), kernel)[:, None]
  assert np.allclose(
    module.apply(kept, x), plain / largest + bias, rtol=1e-3, atol=1e-5
  )
  # Not mutable: the vectors stay.
  assert np.array_equal(module.apply(kept, x), module.apply(kept, x))


@pytest.mark.torch
def test_critics_beside_torch():
  torch = pytest.importorskip("torch")
  F = torch.nn.functional
  wave = noise(2, 301, 1)
  x = torch.tensor(np.asarray(wave)).transpose(1, 2)

  def kernel(p):
    v = np.asarray(p["kernel"])
    flat = v.reshape(-1, v.shape[-1])
    w = (
      v
      * np.asarray(p.get("gain", np.linalg.norm(flat, axis=0)))
      / np.linalg.norm(flat, axis=0)
    )
    order = (w.ndim - 1, w.ndim - 2, *range(w.ndim - 2))
    return torch.tensor(w.transpose(order)), torch.tensor(np.asarray(p["bias"]))

  variables = SMALL["period"].init(jax.random.key(1), wave)
  mine = SMALL["period"].apply(variables, wave)
  for period, verdict in zip((2, 3), mine, strict=True):
    p = variables["params"][f"period_{period}"]
    h = F.pad(x, (0, -301 % period), "reflect").view(2, 1, -1, period)
    for i in range(5):
      w, b = kernel(p[f"conv_{i}"])
      h = F.leaky_relu(F.conv2d(h, w, b, (3 if i < 4 else 1, 1), (2, 0)), 0.1)
    w, b = kernel(p["conv_post"])
    h = F.conv2d(h, w, b, 1, (1, 0))
    ours = np.asarray(verdict.logits).transpose(0, 3, 1, 2)
    assert np.abs(h.numpy() - ours).max() < 1e-5

  variables = SMALL["scale"].init(jax.random.key(2), wave)
  mine = SMALL["scale"].apply(variables, wave)
  shapes = (
    (15, 1, 1),
    (41, 2, 4),
    (41, 2, 4),
    (41, 4, 4),
    (41, 4, 4),
    (41, 1, 4),
    (5, 1, 1),
  )
  pooled = x
  for s, verdict in enumerate(mine):
    if s:
      pooled = F.avg_pool1d(pooled, 4, 2, padding=2)
    if s == 0:  # spectral norm: another scale of the kernel, tested above
      continue
    p, h = variables["params"][f"scale_{s}"], pooled
    for i, (size, stride, groups) in enumerate(shapes):
      w, b = kernel(p[f"conv_{i}"])
      h = F.leaky_relu(F.conv1d(h, w, b, stride, size // 2, groups=groups), 0.1)
    w, b = kernel(p["conv_post"])
    h = F.conv1d(h, w, b, 1, 1)
    assert (
      np.abs(h.numpy() - np.asarray(verdict.logits).transpose(0, 2, 1)).max() < 1e-5
    )

  variables = SMALL["resolution"].init(jax.random.key(3), wave)
  mine = SMALL["resolution"].apply(variables, wave)
  steps = ((2, 2), (2, 1), (2, 2), (2, 1), (2, 2))
  for n, verdict in zip((32, 16), mine, strict=True):
    p = variables["params"][f"resolution_{n}"]
    h = torch.stft(x[:, 0], n, n // 4, window=None, center=True, return_complex=True)
    h = h.abs()[:, None]
    for i, stride in enumerate(steps):
      w, b = kernel(p[f"conv_{i}"])
      assert tuple(w.shape[2:]) == ((7, 5), (5, 3), (5, 3), (3, 3), (3, 3))[i]
      padding = tuple(side // 2 for side in w.shape[2:])
      h = F.leaky_relu(F.conv2d(h, w, b, stride, padding), 0.1)
      assert np.abs(h.numpy().transpose(0, 2, 3, 1) - verdict.maps[i]).max() < 1e-4
    w, b = kernel(p["conv_post"])
    h = F.conv2d(h, w, b, 1, 1).numpy().transpose(0, 2, 3, 1)
    assert np.abs(h - np.asarray(verdict.logits)).max() < 1e-4
