"""A run of four processes endures every fault of the table: `pytest -n 0 -m chaos`."""

from pathlib import Path

import pytest

from tests.chaos.faults import FAULTS, Fault
from tests.chaos.ordeal import endure, row, servers
from tests.chaos.worker import Attempt

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
  return tmp_path_factory.mktemp("chaos")


@pytest.fixture(scope="module")
def started(folder):
  with servers(folder) as found:
    yield found


@pytest.fixture(scope="module")
def reference(started, folder) -> Path:
  """A run that nothing disturbs."""
  out = folder / "reference"
  ended = started[False].attempt(Attempt(str(out)))
  assert ended["code"] == 0, ended
  return out


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_run_endures(fault: Fault, started, reference, folder):
  is_slow = fault.deed == "slow disk"
  if is_slow not in started:
    pytest.skip("a slow disk needs gcc")
  print(row(endure(fault, started[is_slow], reference, folder / fault.name)))


def test_the_table_is_long_enough():
  assert len(FAULTS) == len({fault.name for fault in FAULTS}) >= 20
