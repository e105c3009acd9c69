"""A user's mistakes through the real command line: exit code 2 and one sentence each."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.models import TOKENIZER, random_variables, save, save_both
from tests.weights.test_files import Evil
from tokzoo.files import digest, read_safetensors
from tokzoo.tokenizers.image import instella_t2i as bae
from tokzoo.weights import write_safetensors

TRAIN = ("train", "instella-t2i", "--recipe", "nano-digits")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
  """A folder with a tokenizer, a generator and an 8 x 8 picture; commands run in it."""
  monkeypatch.chdir(tmp_path)
  save_both(tmp_path)
  pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
  Image.fromarray(pixels).save("picture.png")
  return tmp_path


@pytest.fixture
def refused(command):
  """Asserts that a command is refused as a user's mistake is; returns the sentence."""

  def run(*words: object) -> str:
    outcome = command(*words)
    assert_refused(outcome.code, outcome.out, outcome.err)
    return outcome.err

  return run


def assert_refused(code: int, out: str, err: str) -> None:
  assert code == 2, err
  assert out == ""
  assert err.startswith("tokzoo: ") and err.endswith(".\n")
  assert err.count("\n") == 1 and "Traceback" not in err


def encode(source, model="tokenizer.safetensors", out="out.tok") -> tuple:
  return ("encode", source, "--out", out, "--model", model)


def test_the_models_work_on_good_input(command, place):
  assert command(*encode("picture.png")).code == 0
  words = ("decode", "out.tok", "--out", "made.png", "--model", "tokenizer.safetensors")
  assert command(*words).code == 0 and (place / "made.png").is_file()


@pytest.mark.parametrize("size", [(10, 8), (8, 6), (3, 3)])
def test_a_picture_of_another_size(refused, place, size):
  Image.new("L", size).save("picture.png")
  assert f"{size[1]} x {size[0]} pixels does not fit" in refused(*encode("picture.png"))


@pytest.mark.parametrize(
  ("array", "message"),
  [
    (np.zeros((8, 8, 3), np.uint8), "pictures of shape [B, H, W, 1] or [H, W, 1]"),
    (np.zeros((8, 8), np.uint8), "these are [8, 8]: convert the colour channels"),
    (
      np.full((8, 8, 1), 255.0, np.float32),
      "lie in [-1, 1]; these run from 255 to 255",
    ),
    (
      np.zeros((8, 8, 1), np.int64),
      "uint8 in 0..255 or float in [-1, 1]; these are int64",
    ),
    (np.zeros((8, 8, 1), bool), "these are bool"),
    (np.full((8, 8, 1), np.nan, np.float32), "64 values of the pictures are NaN"),
    (np.zeros((2, 8, 8, 1), np.uint8), "one picture was expected, 2 came"),
    (np.array([{}], object), "is not a picture that can be read"),
  ],
)
def test_arrays_that_are_no_pictures(refused, place, array, message):
  np.save("picture.npy", array)
  assert message in refused(*encode("picture.npy"))


@pytest.mark.parametrize("kind", ["cut", "text", "empty"])
def test_files_that_are_no_pictures(refused, place, kind):
  whole = Path("picture.png").read_bytes()
  data = {"cut": whole[: len(whole) // 2], "text": b"hello", "empty": b""}[kind]
  Path("picture.png").write_bytes(data)
  message = "picture.png is not a picture that can be read"
  assert message in refused(*encode("picture.png"))
  words = ("--model", "tokenizer.safetensors", "--out", "made")
  assert message in refused("reconstruct", "picture.png", *words)


def test_a_bad_picture_of_a_data_set_is_named(refused, place):
  Path("pictures").mkdir()
  for name in ("a.png", "b.png"):
    Path("pictures", name).write_bytes(Path("picture.png").read_bytes())
  Path("pictures/b.png").write_bytes(b"no picture")
  said = refused(*encode("folder:pictures", out="tokens"))
  assert "pictures/b.png" in said
  assert not Path("tokens").exists()


def test_an_empty_folder(refused, place):
  Path("nothing").mkdir()
  words = ("--model", "tokenizer.safetensors")
  assert "nothing holds no pictures" in refused("reconstruct", "nothing", *words)
  assert "nothing" in refused(*TRAIN, "--data.source", "folder:nothing")
  assert "nothing" in refused("data", "check", "nothing")
  assert "nothing" in refused("evaluate", "tokenizer.safetensors", "--data", "nothing")


def test_a_missing_path(refused, place):
  words = ("--model", "tokenizer.safetensors")
  assert "no picture at lost.png" in refused(*encode("lost.png"))
  assert "nothing at lost" in refused("reconstruct", "lost", *words)
  assert "no token file at lost.tok" in refused(
    "decode", "lost.tok", "--out", "a.png", *words
  )
  assert "nothing at ./lost" in refused(*encode("picture.png", model="./lost"))
  assert "lost" in refused("data", "check", "lost")
  assert "lost" in refused(*TRAIN, "--data.source", "folder:lost")
  assert "lost.py" in refused("train", "lost.py")
  assert "no run directory" in refused("export", ".", "--out", "a.safetensors")
  said = refused("evaluate", *words[1:], "--data", "digits", "--inception", "lost.pth")
  assert "no Inception weights at lost.pth" in said


def test_an_output_that_cannot_be_written(refused, place):
  Path("file").write_text("")
  words = ("--model", "tokenizer.safetensors")
  assert "cannot write file/a.tok" in refused(*encode("picture.png", out="file/a.tok"))
  assert "cannot write file" in refused(*encode("digits", out="file/tokens"))
  said = refused("reconstruct", "picture.png", "--out", "file/made", *words)
  assert "cannot write file/made" in said
  said = refused("generate", "generator.safetensors", "--num", 1, "--out", "file/made")
  assert "cannot write file/made" in said
  assert "file" in refused(*TRAIN, "--steps", 60, "--out", "file/run")
  assert "file" in refused("data", "prepare", "digits", "--out", "file/prepared")
  authors = ("convert", "tokenizer.safetensors", "--to", "authors")
  assert "cannot write file/a" in refused(*authors, "--out", "file/a.safetensors")


def test_an_output_of_another_kind(refused, place):
  words = ("--model", "tokenizer.safetensors")
  assert "ending '.gif2'" in refused(
    "decode", _tokens(place), "--out", "a.gif2", *words
  )
  assert "end in .safetensors" in refused(
    "convert", "tokenizer.safetensors", "--to", "authors", "--out", "a.pt"
  )
  assert "holds token records already" in refused(
    *encode("digits", out=_records(place))
  )


def test_ids_out_of_range(refused, place):
  path = _tokens(place)
  arrays, header = read_safetensors(path, "token file")
  # Well made but for its content: bits above the 40 of a token, ids above the vocabulary.
  words = ("--out", "a.png", "--model", "tokenizer.safetensors")
  long = {"packed": np.append(arrays["packed"], np.uint8(1))}
  header["digest"] = digest(header, long)
  write_safetensors("long.tok", long, header)
  said = refused("decode", "long.tok", *words)
  assert "tokens of 80 bits are uint8[10]; these are uint8[11]" in said
  header["layout"] = (
    '{"kind": "ids", "vocab": 13, "bits": null, "grid": null, "shape": [1, 2]}'
  )
  ids = {"ids": np.array([3 + 16 * 13], np.uint8)}
  header["digest"] = digest(header, ids)
  write_safetensors("ids.tok", ids, header)
  said = refused("decode", "ids.tok", *words)
  assert "id 13 is out of range: this tokenizer has the ids 0 to 12" in said
  # The first format kept whole words, which can hold bits above the 40 of a token.
  header |= {"version": "1"}
  header["layout"] = '{"kind": "packed", "vocab": null, "bits": 40, "grid": null}'
  words32 = {"packed": np.full((1, 2, 2), 2**31, np.uint32)}
  header["digest"] = digest(header, words32)
  write_safetensors("high.tok", words32, header)
  assert "bit above the 40 bits" in refused("decode", "high.tok", *words)


@pytest.mark.parametrize("classes", [("3",), ("0", "-1"), ("cat",), ("all", "1")])
def test_classes_out_of_range(refused, place, classes):
  said = refused("generate", "generator.safetensors", "--classes", *classes)
  assert "0 to 2" in said


def test_a_token_file_that_is_damaged(refused, place):
  path = _tokens(place)
  whole = path.read_bytes()
  words = ("decode", path, "--out", "a.png", "--model", "tokenizer.safetensors")
  path.write_bytes(whole[:-1])
  assert "not a whole token file" in refused(*words)
  path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
  assert "is damaged" in refused(*words)


def test_tokens_of_another_tokenizer(refused, place):
  path = _tokens(place)
  save(place / "other.safetensors", TOKENIZER, seed=1)
  words = ("decode", path, "--out", "a.png", "--model", "other.safetensors")
  assert "made by instella-t2i@" in refused(*words)
  generator = ("generate", "generator.safetensors", "--tokenizer", "other.safetensors")
  assert "was trained on the tokens of" in refused(*generator)


def test_a_model_of_another_kind(refused, place):
  said = refused(*encode("picture.png", model="generator.safetensors"))
  assert "is a generator; a tokenizer was expected" in said
  assert "is a tokenizer; a generator" in refused("generate", "tokenizer.safetensors")


@pytest.mark.parametrize(
  ("words", "nearest"),
  [
    (("trian",), "train"),
    (("train", "instella-t2", "--recipe", "nano"), "instella-t2i"),
    (("train", "instella-t2i", "--recipe", "nanno"), "nano"),
    ((*TRAIN, "--data.source", "digit"), "digits"),
    (("show", "instella-t2"), "instella-t2i"),
    (("show", "instella-t2i/nan"), "nano"),
    (encode("picture.png", model="instella-ba"), "instella-bae"),
    (("data", "chek", "digits"), "check"),
    (
      ("convert", "a", "--out", "b.safetensors", "--preset", "instella-arr"),
      "instella-ar",
    ),
  ],
)
def test_an_unknown_name(refused, place, words, nearest):
  assert f"did you mean '{nearest}'?" in refused(*words)


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (("list", "--jason"), "--jason: did you mean --json?"),
    ((*encode("picture.png"), "--modle", "x"), "did you mean --model?"),
    ((*TRAIN, "--stps", "3"), "did you mean --steps?"),
    (("train", "instella-t2i", "--recpe", "nano"), "did you mean '--recipe'?"),
    ((*TRAIN, "--model.widht", "3"), "--model.widht"),
    ((*TRAIN, "--steps", "many"), "error parsing --steps"),
    (("encode", "picture.png"), "--out"),
    (("generate", "generator.safetensors", "--num", "0"), "at least 1"),
    (("evaluate", "tokenizer.safetensors", "--num", "0"), "at least 1"),
  ],
)
def test_an_unknown_option_or_value(refused, place, words, message):
  assert message in refused(*words)


@pytest.fixture
def authors(place, monkeypatch) -> dict[str, np.ndarray]:
  """A tokenizer's weights in the authors' layout; its config is the preset "tiny"."""
  monkeypatch.setitem(bae.PRESETS, "tiny", TOKENIZER)
  return bae.WEIGHTS.to_authors(random_variables(TOKENIZER))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"to_pixel.bias": np.zeros(7)}, "'to_pixel.bias' of shape [7]"),
    ({"to_pixel.bias": None}, "lack 'to_pixel.bias'"),
    ({"head.weight": np.zeros(7)}, "hold 'head.weight', which the conversion table"),
    ({"encoder.down_layers.0.conv.bias": np.zeros(16)}, "has no place"),
  ],
)
def test_weights_that_do_not_fit(refused, place, authors, change, message):
  state = {
    key: array for key, array in {**authors, **change}.items() if array is not None
  }
  write_safetensors("weights.safetensors", state)
  words = (
    "convert",
    "weights.safetensors",
    "--preset",
    "tiny",
    "--out",
    "a.safetensors",
  )
  assert message in refused(*words)
  assert not Path("a.safetensors").exists()
  assert message in refused(
    *encode("picture.png", "weights.safetensors"), "--preset", "tiny"
  )


def test_weights_of_another_system(refused, place, authors):
  write_safetensors("weights.safetensors", authors)
  words = ("convert", "weights.safetensors", "--out", "a.safetensors")
  assert "name the published one" in refused(*words)
  assert "did you mean 'instella-t2i'?" in refused(
    *words, "--preset", "tiny", "--system", "instella-t2"
  )


def test_a_pickle_where_safetensors_is_expected(refused, place):
  Path("evil.safetensors").write_bytes(pickle.dumps(Evil(place / "opened")))
  message = "is a pickle, not a safetensors"
  assert message in refused(*encode("picture.png", model="evil.safetensors"))
  words = ("convert", "evil.safetensors", "--preset", "instella-bae-512")
  assert message in refused(*words, "--out", "a.safetensors")
  assert not (place / "opened").exists()


def test_a_checkpoint_that_is_damaged(refused, place):
  whole = Path("tokenizer.safetensors").read_bytes()
  Path("tokenizer.safetensors").write_bytes(whole[:-5])
  assert "not a whole checkpoint" in refused(*encode("picture.png"))
  Path("tokenizer.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
  assert "is damaged" in refused(*encode("picture.png"))


def test_a_batch_that_the_mesh_does_not_divide(refused, place):
  said = refused(*TRAIN, "--batch-size", 12, "--mesh.data", 8, "--steps", 1)
  assert "12" in said and "8" in said
  assert "mesh" in said


def test_data_that_a_generator_cannot_use(refused, place):
  records = _records(place)
  said = refused(*TRAIN, "--data.source", f"tokens:{records}", "--data.split", "test")
  assert "holds the tokens of the split 'train', not of 'test'" in said


def test_the_script_itself(place):
  """Without this process's patience: stderr of a real process is one line as well."""
  lines = [
    encode("lost.png"),
    ("trian",),
    (*encode("picture.png"), "--modle", "x"),
  ]
  for words in lines:
    done = subprocess.run(
      [sys.executable, "-m", "tokzoo", *words], capture_output=True, text=True
    )
    assert_refused(done.returncode, done.stdout, done.stderr)


def _tokens(place: Path) -> Path:
  """A token file of the folder's tokenizer."""
  import tokzoo
  from tokzoo.tokens import save_tokens

  model = tokzoo.load(place / "tokenizer.safetensors")
  path = place / "picture.tok"
  image = np.random.default_rng(0).integers(0, 256, (8, 8, 1)).astype(np.uint8)
  save_tokens(path, model.encode(image), {"height": "8", "width": "8"})
  return path


def _records(place: Path) -> Path:
  """A folder of token records of a few digits."""
  import tokzoo
  from tokzoo.cli.tokenizing import encode_dataset
  from tokzoo.data import DataConfig

  model = tokzoo.load(place / "tokenizer.safetensors")
  data = DataConfig(source="digits", channels=1, threads=0)
  encode_dataset(data, model, place / "records")
  return place / "records"
