"""The transforms against Pillow and JAX, and against their own specification."""

import io

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.pictures import encoded, picture
from tokzoo.data import DataConfig
from tokzoo.data.sources.base import decode_image
from tokzoo.data.transforms import (
  fixed_part,
  random_part,
  require_sizes,
  resize_shorter,
  to_channels,
  to_float,
)
from tokzoo.errors import TokzooError

FILTERS = ("nearest", "box", "bilinear", "bicubic", "lanczos")


def view(config: DataConfig, image: np.ndarray, seed: int = 0) -> np.ndarray:
  record = fixed_part(config, {"image": image, "key": "a.png"})
  return random_part(config, record, np.random.default_rng(seed))["image"]


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("shorter", [7, 45])
def test_resize_is_pillows(name, shorter):
  image = picture(0, 20, 31)
  wanted = Image.fromarray(image).resize(
    (round(31 * shorter / 20), shorter), Image.Resampling[name.upper()]
  )
  np.testing.assert_array_equal(
    resize_shorter(image, shorter, name), np.asarray(wanted)
  )


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos"])
def test_without_antialias_enlarging_is_pillows(name):
  image = picture(1, 20, 30)
  found = resize_shorter(image, 50, name, antialias=False)
  # In float, Pillow neither rounds nor clips between the two axes.
  planes = [Image.fromarray(plane) for plane in np.moveaxis(np.float32(image), -1, 0)]
  filter = Image.Resampling[name.upper()]
  wanted = np.stack([plane.resize((75, 50), filter) for plane in planes], axis=-1)
  np.testing.assert_allclose(found, np.clip(wanted, 0, 255), atol=0.501)


@pytest.mark.parametrize(
  "name, jax_name", [("bilinear", "linear"), ("bicubic", "cubic")]
)
def test_without_antialias_shrinking_is_jaxs(name, jax_name):
  image = picture(2, 40, 60)
  found = resize_shorter(image, 12, name, antialias=False)
  wanted = jax.image.resize(
    image.astype(np.float32), (12, 18, 3), jax_name, antialias=False
  )
  np.testing.assert_allclose(found, np.clip(wanted, 0, 255), atol=0.51)
  widened = resize_shorter(image, 12, name).astype(int)
  assert np.abs(found.astype(int) - widened).max() > 1


@given(height=st.integers(1, 40), width=st.integers(1, 40), shorter=st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_resized_shapes(height, width, shorter):
  image = np.full((height, width, 1), 77, np.uint8)
  for antialias in (True, False):
    found = resize_shorter(image, shorter, "bicubic", antialias)
    assert min(found.shape[:2]) == shorter
    longer = max(height, width) * shorter / min(height, width)
    assert abs(max(found.shape[:2]) - longer) <= 0.5
    assert (found == 77).all()  # weights sum to one


def test_center_crop_and_range():
  image = picture(3, 21, 31)
  found = view(DataConfig(crop="center", size=16), image)
  wanted = image[2:18, 7:23].astype(np.float32) / 127.5 - 1
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, wanted.astype(np.float32))
  ends = to_float(np.array([0, 255], np.uint8))
  np.testing.assert_array_equal(ends, np.float32([-1, 1]))


def test_random_crop_is_uniform_over_all_places():
  # Each pixel holds its own place, so a crop tells where it was cut.
  image = np.arange(5 * 6, dtype=np.uint8).reshape(5, 6, 1)
  config = DataConfig(channels=1, crop="random", size=3)
  places = [
    int(np.rint((view(config, image, seed)[0, 0, 0] + 1) * 127.5))
    for seed in range(1200)
  ]
  counts = np.bincount(places, minlength=30).reshape(5, 6)
  assert counts[3:].sum() == counts[:, 4:].sum() == 0
  assert counts[:3, :4].min() > 60  # 100 are expected


def test_ten_crops_are_corners_and_centre_and_their_mirror_images():
  # Each pixel holds its own place; the centred square of 5 x 8 pixels begins at column 1.
  image = np.arange(5 * 8, dtype=np.uint8).reshape(5, 8, 1)
  config = DataConfig(channels=1, crop="ten", size=2, repeat=10)
  fixed = fixed_part(config, {"image": image, "key": "a.png"})
  rng = np.random.default_rng(0)
  found = [random_part(config, {**fixed, "view": n}, rng)["image"] for n in range(10)]
  corners = np.rint([(view[0, 0, 0] + 1) * 127.5 for view in found[:5]]).astype(int)
  assert corners.tolist() == [1, 4, 25, 28, 2 * 8 + 3]
  for plain, mirrored in zip(found[:5], found[5:], strict=True):
    assert np.array_equal(plain[:, ::-1], mirrored)


def test_flip_mirrors_half_of_the_views():
  image = picture(4, 8, 8)
  views = [view(DataConfig(size=8, flip=True), image, seed) for seed in range(200)]
  plain = to_float(image)
  mirrored = [bool((found == plain[:, ::-1]).all()) for found in views]
  assert all(flip or (found == plain).all() for flip, found in zip(mirrored, views))
  assert 70 < sum(mirrored) < 130


def test_channels_are_pillows():
  colour = picture(5)
  grey = np.asarray(Image.fromarray(colour).convert("L"))[..., None]
  np.testing.assert_array_equal(to_channels(colour, 1), grey)
  np.testing.assert_array_equal(to_channels(grey, 3), np.concatenate([grey] * 3, -1))
  assert to_channels(colour, 3) is colour


def test_decoding_every_mode():
  colour = picture(6, 4, 5)
  for kind in ("PNG", "BMP", "TIFF"):
    np.testing.assert_array_equal(decode_image(encoded(colour, kind), "a"), colour)
  assert decode_image(encoded(colour[..., 0]), "a").shape == (4, 5, 1)
  one_bit = io.BytesIO()
  Image.fromarray(colour).convert("1").save(one_bit, "PNG")
  assert set(np.unique(decode_image(one_bit.getvalue(), "a"))) <= {0, 255}
  deep = np.array([[0, 257, 65535, 300]], np.uint16)
  np.testing.assert_array_equal(
    decode_image(encoded(deep), "a")[0, :, 0], [0, 1, 255, 1]
  )
  clear = np.concatenate([colour, np.zeros((4, 5, 1), np.uint8)], -1)
  assert (decode_image(encoded(clear), "a") == 255).all()


def test_the_cameras_orientation_is_applied():
  image = picture(7, 4, 6)
  exif = Image.Exif()
  exif[0x0112] = 6  # the camera was held upright
  file = io.BytesIO()
  Image.fromarray(image).save(file, "PNG", exif=exif)
  np.testing.assert_array_equal(
    decode_image(file.getvalue(), "a"), np.rot90(image, k=-1)
  )


@pytest.mark.parametrize(
  "data, reason",
  [
    (b"", "empty"),
    (b"not a picture at all", "not an image"),
    (encoded(picture(8), "JPEG")[:-200], "(?i)truncated"),
    (encoded(picture(8), "PNG")[:-200], "truncated"),
    (encoded(np.ones((3, 3), np.float32), "TIFF"), "no fixed range"),
  ],
)
def test_undecodable_files_are_named(data, reason):
  with pytest.raises(TokzooError, match=reason) as error:
    decode_image(data, "some/file.png")
  assert "some/file.png" in str(error.value)


@pytest.mark.parametrize(
  "config, words",
  [
    (DataConfig(crop="random"), "data.size is not set"),
    (DataConfig(size=0), "data.size is 0"),
    (DataConfig(resize=-3), "data.resize is -3"),
    (DataConfig(resize=32, size=64, crop="center"), "data.resize 32 is less than"),
    (
      DataConfig(size=8, crop="ten"),
      "data.repeat is 1 and data.flip False: set repeat .--views. to 10",
    ),
    (DataConfig(size=8, crop="ten", repeat=10, flip=True), "data.flip True: set"),
    (DataConfig(seconds=1, crop="ten", repeat=10), "is of pictures"),
  ],
)
def test_sizes_that_do_not_go_together(config, words):
  with pytest.raises(TokzooError, match=words):
    require_sizes(config)


def test_pictures_that_do_not_fit():
  with pytest.raises(
    TokzooError, match=r"a\.png is 20 x 24 pixels, too small .* of 32"
  ):
    view(DataConfig(crop="random", size=32), picture(0))
  with pytest.raises(TokzooError, match=r"a\.png is 20 x 24 pixels, not 20 x 20"):
    view(DataConfig(size=20), picture(0))
