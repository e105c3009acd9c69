"""Sound files: what comes of good and of bad ones, and the sources of sound."""

import dataclasses
import io
import sys
import tarfile

import numpy as np
import pytest
import soundfile

from tokzoo.cli.main import main
from tokzoo.data import (
  DataConfig,
  evaluation_batches,
  guess_source,
  loader,
  open_source,
)
from tokzoo.data.packaged import sound_crops
from tokzoo.data.sound import (
  encode_flac,
  read_sound,
  resampled,
  sound_blocks,
  sound_info,
  write_sound,
)
from tokzoo.data.sources.speech_prompts import speech_prompts
from tokzoo.data.synthesis import utterance
from tokzoo.errors import TokzooError

RATE = 16_000


def tone(seconds=0.5, hz=440.0, rate=RATE, channels=1):
  """float32[T, C]; the channels are an octave apart."""
  times = np.arange(round(seconds * rate)) / rate
  waves = [0.5 * np.sin(2 * np.pi * hz * 2**c * times) for c in range(channels)]
  return np.stack(waves, 1).astype(np.float32)


def put(folder, name, samples, rate=RATE, **how):
  path = folder / name
  soundfile.write(path, samples, rate, **how)
  return path


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_every_format_is_written_and_read(tmp_path, suffix):
  path = tmp_path / f"a{suffix}"
  write_sound(path, tone(channels=2), RATE)
  info = sound_info(path)
  assert (info.rate_hz, info.channels) == (RATE, 2)
  back = read_sound(path)
  assert back.dtype == np.float32 and back.shape[1] == 2
  if suffix in (".wav", ".flac"):
    assert np.abs(back - tone(channels=2)).max() <= 0.5 / 32768
    write_sound(path, back, RATE)
    assert np.array_equal(read_sound(path), back)
  else:  # lossy; mp3 delays
    assert abs(len(back) - RATE // 2) < 2_500 and 0.2 < np.abs(back).max() < 0.7


def test_full_scale_does_not_wrap(tmp_path):
  write_sound(tmp_path / "a.wav", np.array([[1.5], [-1.5], [1.0]], np.float32), RATE)
  back = read_sound(tmp_path / "a.wav")[:, 0]
  assert np.allclose(back, [32767 / 32768, -1, 32767 / 32768], atol=1e-7)


def test_resampling_keeps_a_tone_and_the_length(tmp_path):
  for found, wanted in ((RATE, 24_000), (44_100, RATE), (8_000, 24_000)):
    sound = resampled(tone(rate=found), found, wanted)
    assert len(sound) == round(len(tone(rate=found)) * wanted / found)
    inner = slice(wanted // 20, -wanted // 20)
    ideal = tone(rate=wanted)[: len(sound)]
    assert np.abs(sound[: len(ideal)] - ideal)[inner].max() < 2e-3
  assert resampled(np.zeros((1, 1), np.float32), 48_000, 8_000).shape == (1, 1)


def test_blocks_are_the_whole_file_and_are_told_once(tmp_path):
  rng = np.random.default_rng(0)
  noise = rng.uniform(-0.5, 0.5, (30_011, 2)).astype(np.float32)
  path = put(tmp_path, "a.wav", noise, 22_050)
  told = []
  whole = read_sound(path, 16_000, 1, told.append)
  blocks = list(sound_blocks(path, 16_000, 1, seconds=0.1))
  assert len(blocks) > 10
  assert np.array_equal(np.concatenate(blocks), whole)
  assert len(whole) == round(30_011 * 16_000 / 22_050)
  assert told == [
    "a.wav: its 2 channels are mixed to one, their mean.",
    "a.wav: resampled from 22050 to 16000 Hz.",
  ]
  # The mean of both: mixing comes before resampling.
  alone = resampled(read_sound(path).mean(1, keepdims=True), 22_050, 16_000)
  assert np.allclose(whole, alone, atol=1e-6)


def refused(path, **how):
  with pytest.raises(TokzooError) as caught:
    read_sound(path, **how)
  text = str(caught.value)
  assert text.count(". ") == 0 and text.endswith(".") and str(path) in text
  return text


def test_what_is_refused(tmp_path):
  (tmp_path / "empty.wav").write_bytes(b"")
  assert "it is empty" in refused(tmp_path / "empty.wav")
  assert "no samples" in refused(put(tmp_path, "none.wav", np.zeros((0, 1))))
  (tmp_path / "text.wav").write_text("Call me Ishmael.")
  assert "not a sound file" in refused(tmp_path / "text.wav")
  nan = tone()
  nan[7] = np.nan
  assert "1 of its samples are NaN" in refused(
    put(tmp_path, "nan.wav", nan, subtype="FLOAT")
  )
  loud = put(tmp_path, "loud.wav", 32768 * tone(), subtype="FLOAT")
  assert "full scale is 1" in refused(loud)
  many = put(tmp_path, "six.wav", tone(channels=6))
  assert "6 channels and the model takes 2" in refused(many, channels=2)
  assert "there is no sound file" in refused(tmp_path / "nothing.wav")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_a_file_that_was_cut_short_is_refused(tmp_path, suffix):
  path = put(tmp_path, f"a.{suffix}", tone(2.0))
  data = path.read_bytes()
  path.write_bytes(data[: len(data) * 2 // 3])
  text = refused(path)
  assert "cut short" in text or "damaged" in text
  folder = open_source(DataConfig(source=f"audio:{tmp_path}", channels=1))
  with pytest.raises(TokzooError, match=str(path)):
    folder[0]


def test_flaws_are_told(tmp_path):
  def said(path, **how):
    told = []
    samples = read_sound(path, say=told.append, **how)
    assert np.abs(samples).max() <= 1.0
    return samples, " ".join(told)

  _, told = said(put(tmp_path, "a.wav", tone(), subtype="PCM_U8"))
  assert "8 bits" in told
  _, told = said(put(tmp_path, "b.wav", np.clip(4 * tone(), -1, 1)))
  assert "at full scale: it is clipped" in told
  _, told = said(put(tmp_path, "c.wav", 2.5 * tone(), subtype="FLOAT"))
  assert "beyond full scale (up to 1.25) are cut off" in told
  _, told = said(put(tmp_path, "d.wav", np.zeros((800, 1))))
  assert "it is silent" in told
  stereo, told = said(put(tmp_path, "e.wav", tone()), channels=2)
  assert "repeated 2 times" in told and np.array_equal(stereo[:, 0], stereo[:, 1])
  one, told = said(put(tmp_path, "f.wav", tone()[100:101]))
  assert one.shape == (1, 1) and told == ""
  six, told = said(put(tmp_path, "g.wav", tone(channels=6)), channels=1)
  assert six.shape == (8000, 1) and "6 channels are mixed" in told


def test_writing_refuses_in_a_sentence(tmp_path):
  with pytest.raises(TokzooError, match=r"the ending '.xyz'"):
    write_sound(tmp_path / "a.xyz", tone(), RATE)
  with pytest.raises(TokzooError, match="NaN"):
    write_sound(tmp_path / "a.wav", np.full((4, 1), np.nan), RATE)
  with pytest.raises(TokzooError, match="cannot hold"):
    write_sound(tmp_path / "a.mp3", tone(rate=12_345), 12_345)
  assert not list(tmp_path.iterdir())


def test_without_the_extra_one_sentence(tmp_path, monkeypatch):
  path = put(tmp_path, "a.wav", tone())
  monkeypatch.setitem(sys.modules, "soxr", None)
  with pytest.raises(TokzooError, match=r"tokzoo\[audio\]"):
    read_sound(path, 8_000)
  assert len(read_sound(path)) == 8_000
  monkeypatch.setitem(sys.modules, "soundfile", None)
  with pytest.raises(TokzooError, match=r"tokzoo\[audio\]"):
    read_sound(path)


# ---------------------------------------------------------------- sources


def test_a_folder_of_sound_is_cropped_to_batches(tmp_path):
  ramp = (np.arange(8_000) / 8_000).astype(np.float32)[:, None]
  put(tmp_path, "a.wav", ramp)
  put(tmp_path, "b.flac", tone(0.1, channels=2))
  (tmp_path / "notes.txt").write_text("x")
  assert guess_source(str(tmp_path)) == f"audio:{tmp_path}"
  config = sound_crops("train", RATE, 0.25, f"audio:{tmp_path}")
  assert "2 sounds in no classes; 1 other" in open_source(config).info.description
  batch = next(loader(config, 16, seed=3))
  assert batch["audio"].shape == (16, 4_000, 1)
  assert batch["audio"].dtype == np.float32
  ramps = [row[:, 0] for row in batch["audio"] if row[-1, 0] > 0.2]
  starts = {float(row[0]) for row in ramps}
  assert len(starts) > 2  # random places
  for row in ramps:
    assert np.allclose(np.diff(row), 1 / 8_000, atol=1e-4)
  short = [row for row in batch["audio"] if row[-1, 0] == 0.0]
  assert short and all((row[1_600:] == 0).all() for row in short)
  again = next(loader(config, 16, seed=3))
  assert np.array_equal(again["audio"], batch["audio"])


def test_classes_rates_and_channels_of_a_folder(tmp_path):
  for name, channels, rate in (("cat", 1, 8_000), ("dog", 2, 44_100)):
    (tmp_path / name).mkdir()
    put(tmp_path / name, "x.wav", tone(1.0, rate=rate, channels=channels), rate)
  config = DataConfig(
    source=f"audio:{tmp_path}", channels=2, sample_rate_hz=16_000, seconds=1.0
  )
  batch = next(evaluation_batches(config, 2))
  assert batch["audio"].shape == (2, 16_000, 2) and batch["label"].tolist() == [0, 1]
  cat, dog = batch["audio"][:, 1_000:-1_000]
  assert np.allclose(cat[:, 0], cat[:, 1])
  assert np.abs(dog - tone(1.0, channels=2)[1_000:-1_000]).max() < 2e-3


def test_configs_that_do_not_go_with_sound(tmp_path):
  put(tmp_path, "a.wav", tone(0.5))
  put(tmp_path, "b.wav", tone(0.25))
  source = f"audio:{tmp_path}"
  with pytest.raises(TokzooError, match=r"set data\.channels"):
    next(evaluation_batches(DataConfig(source=source), 2))
  with pytest.raises(TokzooError, match=r"4000 to 8000 samples.*data\.seconds"):
    next(evaluation_batches(DataConfig(source=source, channels=1), 2))
  with pytest.raises(TokzooError, match=r"data\.seconds is -1"):
    next(evaluation_batches(DataConfig(source=source, channels=1, seconds=-1), 2))


def test_tones_are_the_same_every_time_and_differ_by_split():
  first, again = (open_source(sound_crops("train", 8_000, 1.0)) for _ in range(2))
  held_out = open_source(sound_crops("test", 8_000, 1.0))
  assert (len(first), len(held_out)) == (256, 32)
  assert np.array_equal(first[5]["audio"], again[5]["audio"])
  assert not np.array_equal(first[5]["audio"], held_out[5]["audio"])
  assert first[5]["audio"].shape == (8_000, 1)
  with pytest.raises(TokzooError, match="rate in Hz"):
    open_source(DataConfig(source="tones:loud"))


def test_teachers_are_cut_where_the_sound_is(tmp_path):
  put(tmp_path, "a.wav", np.linspace(0, 0.99, 16_000)[:, None])
  rows = np.linspace(0, 0.99, 50)[:, None] * np.ones((1, 3))
  np.save(tmp_path / "a.teacher.npy", rows)
  np.save(tmp_path / "a.teacher_lm.npy", -rows)
  config = sound_crops("train", RATE, 0.5, f"audio:{tmp_path}")
  batch = next(loader(config, 8, seed=1))
  assert batch["teacher"].shape == batch["teacher_lm"].shape == (8, 25, 3)
  starts = batch["audio"][:, 0, 0]
  assert np.allclose(batch["teacher"][:, 0, 0], starts, atol=0.02)
  assert np.array_equal(batch["teacher"], -batch["teacher_lm"])
  np.save(tmp_path / "a.teacher.npy", np.zeros(7))
  with pytest.raises(TokzooError, match=r"a\.teacher\.npy.*finite float\[M, D\]"):
    open_source(config)[0]


def test_taught_tones_know_units_and_pitch():
  config = sound_crops("train", 8_000, 0.5, "taught-tones")
  source, plain = open_source(config), open_source(sound_crops("train", 8_000, 0.5))
  assert np.array_equal(source[3]["audio"], plain[3]["audio"])
  batch = next(loader(config, 4, seed=0))
  assert batch["teacher"].shape == (4, 25, 16) and batch["teacher_lm"].shape == (
    4,
    25,
    16,
  )
  made = utterance(np.random.default_rng((1, 3)), 8_000, 1.0)
  units = made.units_at((np.arange(50) + 0.5) / 50)
  frames = source[3]["frames"]["teacher"]
  steady = [i for i in range(2, 48) if len(set(units[i - 2 : i + 3])) == 1]
  for i in steady:
    for j in steady:
      assert np.allclose(frames[i], frames[j], atol=1e-5) == (units[i] == units[j])


def test_an_utterance_has_the_pitch_and_the_units_that_it_says():
  made = utterance(np.random.default_rng(4), RATE, 1.0)
  assert np.abs(made.samples).max() <= 0.8001 and made.ends_s[-1] >= 1.0
  assert made.units_at(made.ends_s[:-1] + 1e-6).tolist() == made.units[1:].tolist()
  frame = made.samples[2_000:4_048, 0]
  lags = np.correlate(frame, frame, "full")[2_047:]
  low, high = RATE // 300, RATE // 70
  lag = low + int(lags[low:high].argmax())
  assert abs(RATE / lag - made.pitch_hz) / made.pitch_hz < 0.25


def test_prepared_sound_reads_back_bit_for_bit(tmp_path, capsys):
  sounds = tmp_path / "in"
  sounds.mkdir()
  put(sounds, "a.wav", tone())
  put(sounds, "b.flac", tone(0.2, 300))
  out = tmp_path / "out"
  assert main(["data", "prepare", str(sounds), "--out", str(out)]) == 0
  assert main(["data", "check", str(out)]) == 0
  assert "1 of 8000 x 1" in capsys.readouterr().out
  before = open_source(DataConfig(source=f"audio:{sounds}"))
  after = open_source(DataConfig(source=f"arrayrecord:{out}"))
  assert after.info.media == "sound"
  for index in range(2):
    assert np.array_equal(before[index]["audio"], after[index]["audio"])
    assert after[index]["rate_hz"] == RATE


def make_deb(path, members):
  """A Debian package in form: an `ar` archive with a data.tar.xz."""
  inner = io.BytesIO()
  with tarfile.open(fileobj=inner, mode="w:xz") as archive:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  raw = b"!<arch>\n"
  for name, data in (("debian-binary", b"2.0\n"), ("data.tar.xz", inner.getvalue())):
    raw += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
    raw += data + b"\n" * (len(data) % 2)
  path.write_bytes(raw)


def test_speech_prompts_out_of_a_package(tmp_path):
  pytest.importorskip("av")
  deb = tmp_path / "prompts.deb"
  names = [f"./usr/sounds/digits/{i:02d}.g722" for i in range(20)]
  # 8 bytes of G.722 are 16 samples.
  make_deb(deb, {**{n: bytes([250, 220] * 400) for n in names}, "./readme": b"x"})
  train, test = (speech_prompts(str(deb), split) for split in ("train", "test"))
  assert [test.encoded(i).key for i in range(2)] == ["digits/09", "digits/19"]
  assert len(train) == 18
  record = train[0]
  assert record["audio"].shape == (1_600, 1) and record["rate_hz"] == 16_000


def test_speech_prompts_that_are_not_there(tmp_path, monkeypatch):
  monkeypatch.setenv("TOKZOO_CACHE", str(tmp_path))
  with pytest.raises(TokzooError, match="tokzoo data prepare speech-prompts"):
    speech_prompts("", "train")
  (tmp_path / "a.deb").write_text("x")
  with pytest.raises(TokzooError, match="not a Debian package"):
    speech_prompts(str(tmp_path / "a.deb"), "train")
  monkeypatch.setenv("PATH", str(tmp_path))
  assert main(["data", "prepare", "speech-prompts"]) == 2


def test_flac_of_16_bits_is_lossless():
  rng = np.random.default_rng(1)
  samples = (rng.integers(-32768, 32768, (999, 1)) / 32768).astype(np.float32)
  back, _ = soundfile.read(io.BytesIO(encode_flac(samples, RATE)), dtype="float32")
  assert np.array_equal(back[:, None], samples)


def test_pieces_are_all_of_every_sound(tmp_path):
  """With a teacher's rows beside them; the last piece is filled up."""
  wave = np.linspace(-0.5, 0.5, 2_500, dtype=np.float32)[:, None]
  (tmp_path / "train").mkdir()
  write_sound(tmp_path / "train" / "a.wav", wave, 1_000)
  write_sound(tmp_path / "train" / "b.wav", wave[:400], 1_000)
  np.save(tmp_path / "train" / "a.teacher.npy", np.arange(25.0)[:, None])
  np.save(tmp_path / "train" / "b.teacher.npy", np.arange(4.0)[:, None])
  config = DataConfig(
    source=f"audio:{tmp_path}", channels=1, crop="pieces", seconds=1.0, threads=0
  )
  batch = next(evaluation_batches(config, 4))
  assert batch["valid"].all() and batch["audio"].shape == (4, 1_000, 1)
  joined = batch["audio"][:3].reshape(3_000)
  np.testing.assert_allclose(joined[:2_500], wave[:, 0], atol=1e-4)
  assert not joined[2_500:].any() and not batch["audio"][3, 400:].any()
  np.testing.assert_array_equal(batch["teacher"][1, :, 0], np.arange(10.0, 20.0))
  with pytest.raises(TokzooError, match=r"data\.seconds is None"):
    open_source(dataclasses.replace(config, seconds=None))
