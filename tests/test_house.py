"""The rules of the house that a program can hold: floors, length of files, docstrings."""

import ast
from pathlib import Path

import tokzoo

PACKAGE = Path(tokzoo.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(
  path
  for folder in ("tokzoo", "experiments", "tests")
  for path in (ROOT / folder).rglob("*.py")
)
LINES = 600


def test_rooms_import_only_from_floors_below(monkeypatch):
  from importlinter.cli import lint_imports

  # Its cache would be written beside the sources.
  monkeypatch.chdir(ROOT)
  assert lint_imports(no_cache=True) == 0


def test_the_floors_name_every_room():
  import tomllib

  settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
  layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
  named = {room.strip() for layer in layers for room in layer.split("|")}
  rooms = {
    f"tokzoo.{path.stem}"
    for path in PACKAGE.iterdir()
    if (path.suffix == ".py" or (path / "__init__.py").is_file())
    and not path.stem.startswith("_")
  }
  assert rooms == named


def test_no_file_is_too_long():
  lengths = {path: len(path.read_text().splitlines()) for path in FILES}
  assert {path: length for path, length in lengths.items() if length > LINES} == {}
  assert len(lengths) > 100


def test_everything_public_says_what_it_is():
  missing = [
    f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)} {name}"
    for path in FILES
    if path.is_relative_to(PACKAGE)
    for name, node in public(ast.parse(path.read_text()))
    if ast.get_docstring(node) is None
  ]
  assert missing == []


def public(module: ast.Module) -> list[tuple[str, ast.AST]]:
  """The module and what others use of it: its public functions and classes."""
  kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
  found: list[tuple[str, ast.AST]] = [("module", module)] if module.body else []
  for node in module.body:
    # A `run_COMMAND` only hands its words on to the function of that name.
    if isinstance(node, kinds) and not node.name.startswith(("_", "run_")):
      # An overload is said by the function under it.
      if any(
        isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list
      ):
        continue
      found.append((node.name, node))
  return found
