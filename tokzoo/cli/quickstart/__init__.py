"""`tokzoo quickstart`: photographs to tokens and back, and new digits, in minutes.

  photos.py   a binary tokenizer trained on crops of some photographs, tried on others
  digits.py   a digits tokenizer, and a class-conditional generator of its tokens
  budget.py   how many steps fit the minutes
  page.py     the report

The data are packaged with scikit-image and scikit-learn: nothing is downloaded.
"""

from tokzoo.cli.quickstart.command import run_quickstart

__all__ = ["run_quickstart"]
