"""Digits: what a classifier, trained on real ones, reads in sampled ones."""

import dataclasses

import numpy as np
from sklearn.svm import SVC

from tokzoo.cli.console import to_uint8
from tokzoo.data import DataConfig, open_source
from tokzoo.hub import PretrainedGenerator

PER_CLASS = 50
"""Samples per class: 500 in all."""


@dataclasses.dataclass(frozen=True)
class DigitResult:
  """What was sampled, and how it reads.

  samples:            uint8[10, PER_CLASS, 8, 8, 1], by class
  originals, made:    uint8[N, 8, 8, 1], held-out digits and their reconstructions
  agreement:          share of samples that read as the requested class
  agreement_real:     share of held-out digits that read right after the tokenizer
  classifier_accuracy:  share of held-out digits that read right as they are
  psnr_db:            of the held-out digits through the tokenizer, pooled
  """

  samples: np.ndarray
  originals: np.ndarray
  made: np.ndarray
  agreement: float
  agreement_real: float
  classifier_accuracy: float
  psnr_db: float


def measure(generator: PretrainedGenerator, seed: int = 0) -> DigitResult:
  """Samples every class and reads the samples with a support vector machine."""
  train_images, train_labels = _all_digits("train")
  images, labels = _all_digits("test")
  # scikit-learn takes a number for gamma too; its annotation says otherwise.
  judge = SVC(gamma=0.06, C=10.0)  # pyright: ignore[reportArgumentType]
  judge.fit(_flat(train_images), train_labels)
  wanted = np.repeat(np.arange(10), PER_CLASS)
  samples = to_uint8(generator.generate(wanted, seed))
  made = to_uint8(generator.tokenizer.reconstruct(images))
  error = np.mean((images.astype(np.float64) - made) ** 2)
  return DigitResult(
    samples=samples.reshape(10, PER_CLASS, *samples.shape[1:]),
    originals=images,
    made=made,
    agreement=float(judge.score(_flat(samples), wanted)),
    agreement_real=float(judge.score(_flat(made), labels)),
    classifier_accuracy=float(judge.score(_flat(images), labels)),
    psnr_db=float(10 * np.log10(255**2 / error)),
  )


def _all_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
  source = open_source(DataConfig(source="digits", split=split))
  records = [source[index] for index in range(len(source))]
  images = np.stack([record["image"] for record in records])
  return images, np.stack([record["label"] for record in records])


def _flat(images: np.ndarray) -> np.ndarray:
  return images.reshape(len(images), -1).astype(np.float64) / 127.5 - 1
