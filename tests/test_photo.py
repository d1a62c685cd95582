"""Tests of photo.py: every kind of image file becomes the same kind of array, and a bad one a clear sentence."""

import numpy as np
import pytest
from conftest import encode
from PIL import Image, ImageCms, features

import photo


def save(tmp_path, image, name="photo.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode, colour, expected", [
    ("L", 100, (100, 100, 100)), ("1", 1, (255, 255, 255)), ("RGB", (1, 2, 3), (1, 2, 3)),
    ("RGBA", (10, 20, 30, 255), (10, 20, 30)), ("RGBA", (10, 20, 30, 0), (255, 255, 255)), ("LA", (7, 255), (7, 7, 7)),
    ("I;16", 257 * 200, (200, 200, 200)),
])
def test_every_colour_mode_becomes_rgb(tmp_path, mode, colour, expected):
    pixels = photo.load_photo(save(tmp_path, Image.new(mode, (3, 2), colour)))
    assert pixels.shape == (2, 3, 3) and pixels.dtype == np.uint8
    assert (pixels == expected).all()


def test_cmyk_palette_and_animation(tmp_path):
    red = photo.load_photo(save(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "red.jpg"))[4, 4]
    assert red[0] > 200 and red[1] < 60 and red[2] < 60
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("blue", "white")]
    first = photo.load_photo(save(tmp_path, frames[0], "two.gif", save_all=True, append_images=frames[1:]))
    assert (first == (0, 0, 255)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(tmp_path, orientation):
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :12], upright[:8, 12:], upright[8:, :12] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270}
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (photo.load_photo(save(tmp_path, stored, exif=exif)) == upright).all()


@pytest.mark.parametrize("size", [(1, 1), (8000, 20), (20, 8000)])
def test_extreme_sizes_become_thumbnails(tmp_path, size):
    pixels = photo.load_photo(save(tmp_path, Image.new("RGB", size, "navy")))
    height, width, _ = pixels.shape
    assert 1 <= min(height, width) <= min(size) and max(height, width) <= max(size)
    assert (photo.to_thumbnail(pixels) == (0, 0, 128)).all() and photo.to_thumbnail(pixels).shape == (32, 32, 3)


def test_a_bad_photo_gets_one_clear_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="no photo at .*gone.jpg"):
        photo.load_photo(tmp_path / "gone.jpg")
    text = tmp_path / "text.jpg"
    text.write_text("not a photo", encoding="utf-8")
    with pytest.raises(photo.Unreadable, match="text.jpg is not an image"):
        photo.load_photo(text)
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    whole = save(tmp_path, Image.fromarray(noise), "cut.jpg")
    whole.write_bytes(whole.read_bytes()[:-300])
    with pytest.raises(photo.Unreadable, match="cut.jpg can't be read as an image"):
        photo.load_photo(whole)


def test_no_memory_is_not_the_file_s_fault(monkeypatch):
    def full(*_):
        raise MemoryError
    monkeypatch.setattr(photo, "_decode", full)
    with pytest.raises(MemoryError):
        photo.load_photo(encode(Image.new("RGB", (9, 9))))


def test_nor_is_a_missing_decoder(monkeypatch):
    data = encode(Image.new("RGB", (9, 9)), "JPEG")
    monkeypatch.delattr(Image.core, "jpeg_decoder")
    with pytest.raises(OSError, match="decoder jpeg not available") as error:
        photo.load_photo(data)
    assert not isinstance(error.value, photo.Unreadable)
    monkeypatch.undo()
    monkeypatch.setattr(features, "check", lambda name: name != "webp")
    assert photo.missing_decoders() == ["webp"]
    with pytest.raises(RuntimeError, match="Pillow was built without webp"):
        photo.load_photo(b"what this Pillow can't identify")


def test_a_colour_profile_is_obeyed():
    plain = Image.new("RGB", (40, 40), (200, 100, 50))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))  # of another colour model: the photo goes without
    assert (photo.load_photo(encode(plain, icc_profile=profile.tobytes())) == (200, 100, 50)).all()
    assert (photo.load_photo(encode(plain, icc_profile=b"not a profile")) == (200, 100, 50)).all()
    srgb = bytearray(ImageCms.ImageCmsProfile(photo.SRGB).tobytes())
    assert np.abs(photo.load_photo(encode(plain, icc_profile=bytes(srgb))).astype(int) - (200, 100, 50)).max() <= 1
    # Red and blue primaries exchanged: a profile that is obeyed turns orange to blue.
    for tag, other in ((b"rXYZ", b"bXYZ"),):
        red, blue = srgb.index(tag), srgb.index(other)
        srgb[red:red + 4], srgb[blue:blue + 4] = other, tag
    swapped = photo.load_photo(encode(plain, icc_profile=bytes(srgb)))
    assert swapped[0, 0, 2] > swapped[0, 0, 0]


def test_a_large_photo_is_averaged_not_sampled():
    stripes = np.zeros((2000, 3000, 3), np.uint8)
    stripes[:, ::2] = 255
    thumbnail = photo.to_thumbnail(photo.load_photo(encode(stripes, compress_level=1)))
    assert np.abs(thumbnail.astype(int) - 127).max() <= 2


def test_a_large_jpeg_is_read_unless_it_would_be_held_in_full():
    large = Image.new("RGB", (6000, 5000), "navy")
    assert max(photo.load_photo(encode(large, "JPEG")).shape) <= photo.LONG_SIDE
    with pytest.raises(photo.TooLarge, match="25,000,000"):
        photo.load_photo(encode(large, "JPEG", progressive=True))


def test_the_answer_names_a_class_or_says_why_not():
    truck, ship = photo.answer(0.9, -1), photo.answer(0.2, -1)
    assert (truck["class"], truck["confidence"]) == ("Truck", 0.9) and (ship["class"], ship["confidence"]) == ("Ship", 0.8)
    neither = photo.answer(0.9, 0.1)
    assert neither["class"] is None and neither["confidence"] is None and "neither" in neither["reason"]
    assert neither["probabilities"] == pytest.approx({"ship": 0.1, "truck": 0.9})
