"""`tokzoo encode`, `decode`, `reconstruct` and `stream` of sound, in this process."""

import io
import json
import types

import numpy as np
import pytest
import soundfile

from tests.codecs import CAUSAL, RATE, save_codec, sound
from tests.models import TOKENIZER, save
from tokzoo.cli import sounding, streaming
from tokzoo.hub import codec
from tokzoo.metrics import audio as metrics
from tokzoo.tokens import load_tokens


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return save_codec(tmp_path_factory.mktemp("codec") / "tiny.safetensors")


@pytest.fixture(autouse=True)
def no_packages(monkeypatch):
  """The perceptual metrics take seconds to import; their own tests have them."""
  monkeypatch.setattr(metrics, "_package", lambda name: None)


def put(folder, name="a.wav", wave=None, rate=RATE, **how):
  path = folder / name
  soundfile.write(path, sound() if wave is None else wave, rate, **how)
  return path


def test_a_file_to_tokens_and_back(command, model, tmp_path):
  path, tok = put(tmp_path), tmp_path / "a.tok"
  done = command(
    "encode", path, "--model", model, "--kbps", 1.6, "--out", tok, "--json"
  )
  assert done.code == 0
  told = json.loads(done.out)
  assert (told["codebooks"], told["frames"], told["bytes"]) == (2, 100, 100)
  assert np.isclose(told["kbps"], 1.6) and told["peak_memory_mb"] > 50
  assert told["real_time_factor"] > 0
  tokens, extra = _load(tok, model)
  assert tokens.ids.shape == (1, 100, 2) and extra["samples"] == "800"
  back = tmp_path / "again.wav"
  done = command("decode", tok, "--model", model, "--out", back)
  assert done.code == 0 and "0.50 s at 1600 Hz" in done.err
  wave, rate = soundfile.read(back, always_2d=True)
  assert wave.shape == (800, 1) and rate == RATE and np.abs(wave).max() > 0.01


def _load(tok, model):
  import tokzoo

  return load_tokens(tok, tokzoo.load(model).origin)


def test_what_is_done_to_a_file_is_said(command, model, tmp_path):
  path = put(tmp_path, wave=sound(0.5, channels=2), rate=2_000)
  done = command("encode", path, "--model", model, "--out", tmp_path / "a.tok")
  assert done.code == 0
  assert "a.wav: its 2 channels are mixed" in done.err
  assert "a.wav: resampled from 2000 to 1600 Hz." in done.err


@pytest.mark.parametrize(
  "name, make, message",
  [
    ("empty.wav", lambda p: p.write_bytes(b""), "it is empty"),
    ("text.wav", lambda p: p.write_text("hello"), "not a sound file"),
    ("gone.wav", lambda p: None, "there is no sound file"),
    (
      "nan.wav",
      lambda p: soundfile.write(p, np.full(9, np.nan), RATE, subtype="FLOAT"),
      "NaN",
    ),
  ],
)
def test_bad_files_get_one_sentence(command, model, tmp_path, name, make, message):
  path = tmp_path / name
  make(path)
  done = command("encode", path, "--model", model, "--out", tmp_path / "a.tok")
  assert done.code == 2 and done.out == ""
  assert message in done.err and done.err.count("\n") == 1
  assert not (tmp_path / "a.tok").exists()


def test_silence_and_one_sample_are_coded(command, model, tmp_path):
  for name, wave in (("s.wav", np.zeros((400, 1))), ("o.wav", np.full((1, 1), 0.5))):
    path, tok = put(tmp_path, name, wave), tmp_path / "a.tok"
    assert command("encode", path, "--model", model, "--out", tok).code == 0
    out = tmp_path / "b.wav"
    assert command("decode", tok, "--model", model, "--out", out).code == 0
    assert soundfile.info(out).frames == len(wave)


def test_what_does_not_go_together(command, model, tmp_path):
  path, tok = put(tmp_path), tmp_path / "a.tok"
  pictures = save(tmp_path / "pictures.safetensors", TOKENIZER)

  def refused(*words):
    done = command(*words)
    assert done.code == 2 and done.err.count("\n") == 1, done.err
    return done.err

  encode = ("encode", path, "--out", tok, "--model")
  assert "choose one of 0.8, 1.6, 3.2" in refused(*encode, model, "--kbps", "6")
  assert "--size came" in refused(*encode, model, "--size", "8")
  assert "takes pictures: name a codec" in refused(*encode, pictures)
  assert command(*encode, model).code == 0
  other = save_codec(tmp_path / "other.safetensors", seed=1)
  out = tmp_path / "b.wav"
  assert "were made by" in refused("decode", tok, "--model", other, "--out", out)
  told = refused("decode", tok, "--model", model, "--out", tmp_path / "b.txt")
  assert "sound is written as" in told
  assert "--kbps is of codecs" in refused(
    "reconstruct", path, "--model", pictures, "--kbps", "6"
  )
  assert "holds no sounds" in refused("reconstruct", _empty(tmp_path), "--model", model)


def _empty(folder):
  (folder / "empty").mkdir()
  return folder / "empty"


def test_reconstruct_makes_sounds_and_numbers(command, model, tmp_path):
  sounds, out = tmp_path / "in", tmp_path / "out"
  sounds.mkdir()
  put(sounds, "a.wav")
  put(sounds, "b.flac", np.zeros((800, 1)))
  done = command(
    "reconstruct", sounds, "--model", model, "--kbps", 1.6, "--out", out, "--json"
  )
  assert done.code == 0 and "not computed: STOI, PESQ, DNSMOS" in done.err
  told = json.loads(done.out)
  assert told == json.loads((out / "numbers.json").read_text())
  first, silent = told["sounds"]
  assert first["si_sdr_db"] < 20 and first["mel_distance"] > 0
  assert first["stoi"] is first["pesq"] is first["dnsmos"] is None
  assert silent["si_sdr_db"] is None
  # The mean is of the sounds that have the number.
  assert told["models"][0]["si_sdr_db"] == first["si_sdr_db"]
  assert sorted(p.name for p in out.glob("*.wav")) == ["a.wav", "b.wav"]
  shown = command("reconstruct", sounds, "--model", model, "--out", out)
  assert shown.code == 0 and "kbps" in shown.out and "STOI" not in shown.out


def test_a_long_file_goes_in_pieces_and_comes_back(
  command, model, tmp_path, monkeypatch
):
  monkeypatch.setattr(codec, "CHUNK_S", 0.5)
  path, tok = put(tmp_path, wave=sound(2.3)), tmp_path / "a.tok"
  assert command("encode", path, "--model", model, "--out", tok).code == 0
  out = tmp_path / "b.flac"
  assert command("decode", tok, "--model", model, "--out", out).code == 0
  assert soundfile.info(out).frames == round(2.3 * RATE)


# ---------------------------------------------------------------- stream


class Pipe:
  """A standard stream with bytes under it."""

  def __init__(self, data=b""):
    self.buffer = io.BytesIO(data)


def streamed(command, monkeypatch, data, *words):
  """Runs `tokzoo stream` on bytes; its outcome and what it wrote."""
  source, sink = Pipe(data), Pipe()
  fake = types.SimpleNamespace(stdin=source, stdout=sink)
  monkeypatch.setattr(streaming, "sys", fake)
  return command("stream", *words), sink.buffer.getvalue()


def test_a_stream_is_what_the_whole_file_gives(command, model, monkeypatch):
  import tokzoo

  wave = sound(1.02)[:1_629]
  pcm = np.rint(wave * 32768).astype("<i2")
  words = ("--model", model, "--piece-ms", "80")
  done, raw = streamed(command, monkeypatch, pcm.tobytes(), *words, "--kbps", "1.6")
  assert done.code == 0 and "ms to compute it" in done.err
  head, _, rest = raw.partition(b"\n")
  assert json.loads(head)["codebooks"] == 2
  ids = np.frombuffer(rest, "<u2").reshape(-1, 2)
  loaded = tokzoo.load(model)
  filled = np.pad(pcm / np.float32(32768), ((0, -len(pcm) % 8), (0, 0)))
  whole = loaded.encode(filled.astype(np.float32), 2)
  assert ids.shape == whole.ids.shape[1:]
  assert np.mean(ids == np.asarray(whole.ids[0])) > 0.99
  done, sound_back = streamed(command, monkeypatch, raw, *words, "--decode")
  assert done.code == 0
  back = np.frombuffer(sound_back, "<i2")[:, None] / 32768
  made = loaded.decode(whole.replace(ids=ids[None].astype(np.int32)))[0]
  assert back.shape == made.shape and np.abs(back - made).max() < 1e-4


def test_streams_that_are_refused(command, model, monkeypatch, tmp_path):
  words = ("--model", model, "--decode")

  def refused(data, *words):
    done, raw = streamed(command, monkeypatch, data, *words)
    assert done.code == 2 and done.err.count("\n") == 1 and raw == b""
    return done.err

  assert "no stream of tokens" in refused(b"RIFF....", *words)
  assert "no stream of tokens" in refused(b"", *words)
  import tokzoo

  origin = tokzoo.load(model).origin
  head = {"format": streaming.FORMAT, "version": 1, "system": "encodec"}
  head |= {"weights": origin.weights, "codebooks": 2}

  def with_head(frames=b"", **changes):
    return json.dumps({**head, **changes}).encode() + b"\n" + frames

  assert "was made by mimi@" in refused(with_head(system="mimi"), *words)
  assert "9 codebooks" in refused(with_head(codebooks=9), *words)
  assert "version" not in refused(with_head(version=7), *words)
  assert "cut short" in refused(with_head(b"\0\0\0"), *words)
  assert "id 65535 is out of range" in refused(with_head(b"\xff\xff\0\0"), *words)
  assert "--kbps came with --decode" in refused(with_head(), *words, "--kbps", "1.6")


def test_peak_memory_is_in_megabytes():
  assert 50 < sounding.peak_memory_mb() < 100_000
  assert CAUSAL.hop == 8
