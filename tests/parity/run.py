"""Compares tokzoo with what the authors' code computed.

  python tests/parity/run.py FILE...

A fixture is a safetensors file with `param/`, `in/`, `out/`, `grad/` and `after/` tensors; its
metadata says its `kind` and `config`. The comparison of that kind builds the system from the
config alone, brings `param/` in through the system's weight table, and computes every `out/`,
`grad/` and `after/` tensor. One row each is printed; the exit code is 1 if anything differs,
is missing, or has no comparison.
"""

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):
  sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.parity.base import compare
from tokzoo.errors import TokzooError


def main(arguments: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
  failed = 0
  for path in parser.parse_args(arguments).files:
    print(path.name)
    try:
      rows = compare(path)
    except TokzooError as error:
      print(f"  FAIL  {error}")
      failed += 1
      continue
    for row in rows:
      verdict = "pass" if row.passed else "FAIL"
      failed += not row.passed
      print(
        f"  {verdict}  {row.name:44s} {list(row.shape)!s:18s} "
        f"error {row.error:.1e}  tolerance {row.tolerance:.0e}  {row.note}"
      )
    if not rows:
      print("  FAIL  the fixture has nothing to compare")
      failed += 1
  print("all pass" if not failed else f"{failed} FAILED")
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(main())
