"""Places for numbers and pictures, and recipes as JSON."""

import dataclasses
import io
import json
import sys
import types

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from tests.train.tasks import AutoEncoder, Linear, make_recipe
from tests.train.test_checkpoint import go
from tokzoo.data.config import DataConfig
from tokzoo.errors import TokzooError
from tokzoo.train import from_json, to_json
from tokzoo.train.serial import changes
from tokzoo.train.writers import JsonLines, Terminal, open_log, open_writer, read_log

IMAGE = np.zeros((4, 6, 3), np.uint8)


def test_json_lines_are_json_whatever_the_numbers(tmp_path):
  log = JsonLines(tmp_path)
  log.write(1, "train", {"loss": float("nan"), "psnr": float("inf"), "x": 0.1})
  log.picture(1, "a/b", IMAGE)
  log.close()
  text = (tmp_path / "log.jsonl").read_text()
  assert json.loads(text) == {
    "step": 1,
    "split": "train",
    "loss": None,
    "psnr": None,
    "x": 0.1,
  }
  assert (tmp_path / "pictures/00000001-a-b.png").is_file()


def test_a_resumed_log_drops_what_will_be_done_again(tmp_path):
  log = JsonLines(tmp_path)
  for step in (2, 4, 6):
    log.write(step, "train", {"loss": 1.0})
    log.write(step, "test", {"loss": 2.0})
  log.close()
  with (tmp_path / "log.jsonl").open("a") as file:
    file.write('{"step": 8, "spl')
  JsonLines(tmp_path, resumed=4).close()
  kept = [(line["step"], line["split"]) for line in read_log(tmp_path / "log.jsonl")]
  assert kept == [(2, "train"), (2, "test"), (4, "train")]


def test_a_terminal_shows_a_bar_and_a_pipe_gets_lines(monkeypatch):
  for is_terminal in (True, False):
    text = io.StringIO()
    console = Console(file=text, force_terminal=is_terminal, width=120)
    monkeypatch.setattr(
      "tokzoo.train.writers.Console", lambda console=console, **_: console
    )
    terminal = Terminal("linear/nano", 10, 20)
    terminal.say("continues after step 10")
    terminal.write(15, "train", {"loss": 0.25, "lr": 0.5, "steps_per_second": 7.0})
    terminal.write(20, "test", {"mse": 0.125})
    terminal.close()
    shown = text.getvalue()
    assert "continues after step 10" in shown and "test  mse 0.125" in shown
    if is_terminal:
      assert "15/20" in shown and "loss 0.25" in shown and "lr" not in shown
    else:
      assert "step 15/20  train  loss 0.25  lr 0.5" in shown and "left" in shown


def test_tensorboard_gets_numbers_pictures_and_the_recipe(tmp_path):
  go(make_recipe(steps=4), tmp_path, writers=("tensorboard",))
  (events,) = (tmp_path / "tensorboard").iterdir()
  content = events.read_bytes()
  assert b"train/loss" in content and b"held_out/mse" in content
  writer = open_writer("tensorboard", tmp_path / "other", "title", {"a": 1})
  writer.picture(1, "rows", IMAGE)
  writer.close()
  (events,) = (tmp_path / "other/tensorboard").iterdir()
  assert b"PNG" in events.read_bytes()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_get_what_the_log_gets(tmp_path, monkeypatch, name):
  calls = []
  module = types.SimpleNamespace(
    init=lambda **settings: calls.append(("init", settings)),
    log=lambda values, step: calls.append((step, values)),
    Image=lambda image: image.shape,
    finish=lambda: calls.append("finish"),
  )
  monkeypatch.setitem(sys.modules, name, module)
  with open_log(make_recipe(), tmp_path, 0, (name,), progress=False) as log:
    log.write(3, "train", {"loss": 1.0})
    log.picture(3, "rows", IMAGE)
  assert calls[0][1]["config"]["system"] == "linear"
  assert calls[1:] == [(3, {"train/loss": 1.0}), (3, {"rows": (4, 6, 3)}), "finish"]


def test_writers_that_are_not_there(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(TokzooError, match=r"pip install .tokzoo\[writers\]"):
    open_writer("wandb", tmp_path, "title", {})
  with pytest.raises(TokzooError, match="did you mean 'tensorboard'"):
    open_writer("tensorbord", tmp_path, "title", {})


@dataclasses.dataclass(frozen=True)
class Odd:
  dtype: object = jnp.bfloat16
  function: object = make_recipe
  shape: tuple = ((1, 2), None, 0.5)
  module: nn.Module | None = None
  table: dict = dataclasses.field(default_factory=lambda: {"a": True})


def test_recipes_come_back_from_json_as_they_were():
  for value in (make_recipe(), Odd(module=AutoEncoder(hidden=3)), Linear()):
    text = json.dumps(to_json(value))
    assert from_json(json.loads(text)) == value or isinstance(value, Odd)
  odd = from_json(to_json(Odd(module=AutoEncoder(hidden=3))))
  assert odd.dtype == jnp.dtype("bfloat16") and odd.function is make_recipe
  assert odd.shape == ((1, 2), None, 0.5) and odd.module == AutoEncoder(hidden=3)


@pytest.mark.parametrize(
  ("value", "words"),
  [
    ({"class": "tokzoo.data.config:Nothing"}, "names tokzoo.data.config:Nothing"),
    ({"class": "not_imported:Thing"}, "names not_imported:Thing"),
    ({"class": "os:system"}, "is no dataclass"),
    ({"class": "tokzoo.data.config:DataConfig", "hue": 1}, "sets 'hue'"),
  ],
)
def test_json_of_something_else_is_refused(value, words):
  with pytest.raises(TokzooError, match=words):
    from_json(value)


def test_a_local_function_has_no_json_form():
  with pytest.raises(TokzooError, match="has no name of its own"):
    to_json({"f": lambda x: x})


def test_changes_are_named_by_their_path():
  before = to_json(make_recipe())
  after = to_json(make_recipe(steps=13, data=DataConfig(source="digits")))
  found = changes(before, after)
  assert found == {"steps": (12, 13), "data.source": ("photos", "digits")}
