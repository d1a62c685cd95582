"""Tests of photo.py: every kind of image file becomes the same kind of array, and a bad one a clear sentence."""

import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from service_helpers import chunk, encode, images_of, jpeg_in_scans, png, tiff_in_strips

from service import photo


@pytest.mark.parametrize(
    "mode, colour, form, expected",
    [
        ("L", 100, "PNG", (100, 100, 100)),
        ("1", 1, "PNG", (255, 255, 255)),
        ("RGB", (1, 2, 3), "PNG", (1, 2, 3)),
        ("RGB", (1, 2, 3), "BMP", (1, 2, 3)),
        ("RGB", (1, 2, 3), "TIFF", (1, 2, 3)),
        ("RGBA", (10, 20, 30, 255), "PNG", (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), "PNG", (255, 255, 255)),
        ("LA", (7, 255), "PNG", (7, 7, 7)),
        ("I;16", 257 * 200, "PNG", (200, 200, 200)),
        ("I;16", 257 * 200, "TIFF", (200, 200, 200)),
    ],
)
def test_every_colour_mode_becomes_rgb(mode, colour, form, expected):
    pixels = photo.load_photo(encode(Image.new(mode, (3, 2), colour), form))
    assert pixels.shape == (2, 3, 3) and pixels.dtype == np.uint8
    assert (pixels == expected).all()


def test_cmyk_palette_and_animation():
    red = photo.load_photo(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))[4, 4]
    assert red[0] > 200 and red[1] < 60 and red[2] < 60
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("blue", "white")]
    for form in ("GIF", "WEBP"):
        first = photo.load_photo(encode(frames[0], form, save_all=True, append_images=frames[1:], lossless=True))
        assert (first == (0, 0, 255)).all()


@pytest.mark.parametrize("size", [(24, 16), (1025, 769)])  # the second is averaged in blocks, some of which are cut off
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(orientation, size):
    stored = upright = Image.fromarray(images_of("ship")[0]).resize(size)
    if orientation > 1:
        names = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_90 TRANSVERSE ROTATE_270".split()
        stored = upright.transpose(Image.Transpose[names[orientation - 2]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (photo.load_photo(encode(stored, exif=exif)) == photo.load_photo(encode(upright))).all()


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize(
    "exif", [b"no TIFF header", b"II*\0" + b"\xff" * 40, b"II*\0\x08\0\0\0\1\0\x12\1\2\0\4\0\0\0abc\0"]
)
def test_broken_exif_does_not_matter(form, exif):
    image = Image.new("RGB", (40, 30), "navy")
    assert np.abs(photo.load_photo(encode(image, form, exif=b"Exif\0\0" + exif)).astype(int) - (0, 0, 128)).max() < 4


def test_exif_of_an_unlikely_size_is_not_looked_at():
    for size, shape in ((60_000, (40, 30, 3)), (100_000, (30, 40, 3))):
        exif = Image.Exif()
        exif[0x0112], exif[0x927C] = 6, bytes(size)
        assert photo.load_photo(encode(Image.new("RGB", (40, 30)), exif=exif)).shape == shape


@pytest.mark.parametrize("size", [(1, 1), (8000, 20), (20, 8000)])
def test_extreme_sizes_become_thumbnails(size):
    pixels = photo.load_photo(encode(Image.new("RGB", size, "navy")))
    height, width, _ = pixels.shape
    assert 1 <= min(height, width) <= min(size) and max(height, width) <= max(size)
    assert (photo.to_thumbnail(pixels) == (0, 0, 128)).all() and photo.to_thumbnail(pixels).shape == (32, 32, 3)


def test_a_thumbnail_passes_unchanged():
    for image in images_of("ship")[:20]:
        assert (photo.to_thumbnail(photo.load_photo(encode(image))) == image).all()


def test_a_large_photo_is_averaged_not_sampled():
    stripes = np.zeros((2000, 3000, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels = photo.load_photo(encode(stripes, compress_level=1))
    assert max(pixels.shape) <= 1024
    assert np.abs(photo.to_thumbnail(pixels).astype(int) - 127).max() <= 2


def test_a_bad_photo_gets_one_clear_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="no photo at .*gone.jpg"):
        photo.load_photo(tmp_path / "gone.jpg")
    path = tmp_path / "text.jpg"
    path.write_text("not a photo", encoding="utf-8")
    with pytest.raises(photo.Unreadable, match="text.jpg is not an image"):
        photo.load_photo(path)
    path.write_bytes(encode(images_of("ship")[0], "JPEG")[:-300])
    with pytest.raises(photo.Unreadable, match="text.jpg is damaged"):
        photo.load_photo(path)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_floats_and_32_bits_are_refused_with_the_reason(mode):
    with pytest.raises(photo.Unreadable, match="32 bits or floats.*save it again"):
        photo.load_photo(encode(Image.new(mode, (40, 40)), "TIFF"))


TEXT = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(1_000_000)))


def square(form, mode="RGB", **options):
    return lambda side: encode(Image.new(mode, (side, side)), form, **options)


def with_metadata(size):
    comment = b"\xff\xfe\xff\xff" + bytes(65_533)
    return b"\xff\xd8" + comment * (size // 65_537) + encode(Image.new("L", (9, 9)), "JPEG")[2:]


@pytest.mark.parametrize(
    "make, accepted, refused",
    [
        (lambda side: png(side, side, 8, 0), 4242, 4243),
        (square("WEBP"), 2121, 2122),
        (square("TIFF", "L"), 2121, 2122),
        (lambda width: encode(Image.new("RGB", (width, 1000)), "JPEG"), 18_000, 18_001),
        (lambda height: jpeg_in_scans(3000, height), 3428, 3430),
        (square("JPEG", progressive=True, subsampling=2), 4700, 4712),
        (square("JPEG", progressive=True, subsampling=0), 3200, 3220),
        (square("JPEG", "CMYK", progressive=True), 2820, 2840),
        (lambda scans: jpeg_in_scans(32, 32, scans), 100, 101),
        (with_metadata, 1_900_000, 2_100_000),
    ],
    ids="png webp tiff jpeg in_scans 4:2:0 4:4:4 cmyk scans metadata".split(),
)
def test_what_would_take_too_much_is_refused(make, accepted, refused):
    assert photo.load_photo(make(accepted)).dtype == np.uint8
    with pytest.raises(photo.TooLarge):
        photo.load_photo(make(refused))


def test_a_large_photo_of_a_camera_is_read():
    assert max(photo.load_photo(encode(Image.new("RGB", (8160, 6120)), "JPEG")).shape) <= 1024


def claims(data, width, height):
    """Return a JPEG file with another size in its header."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + height.to_bytes(2) + width.to_bytes(2) + data[at + 4 :]


@pytest.mark.parametrize(
    "data, complaint",
    [
        (png(50_000, 50_000, pixels=b""), "too many pixels"),
        (claims(encode(Image.new("L", (9, 9)), "JPEG"), 10_100, 10_000), "too many pixels"),
        (tiff_in_strips(20_001), "TIFF tag of more than 20,000 values"),
        (tiff_in_strips(20_001, kind=1), "TIFF tag of more than 20,000 values"),
        (b"II+\0" + bytes(40), "no TIFF file of the usual kind"),
        (png(40, 40, extra=TEXT * 5), "Too much memory used in text"),
    ],
)
def test_what_claims_too_much_is_refused(data, complaint):
    with pytest.raises(photo.Unreadable, match=complaint):
        photo.load_photo(data)


def test_a_tile_larger_than_its_picture_counts():
    data = bytearray(encode(Image.new("L", (64, 64)), "TIFF"))
    # Two tags that don't matter here become the width and the length of a tile.
    for old, new in ((278, 322), (279, 323)):
        at = data.index(old.to_bytes(2, "little"), 8)
        data[at : at + 12] = new.to_bytes(2, "little") + b"\4\0\1\0\0\0" + (3000).to_bytes(4, "little")
    with pytest.raises(photo.TooLarge):
        photo.load_photo(bytes(data))


def test_no_memory_is_not_the_file_s_fault(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(photo, "_decode", fail)
    with pytest.raises(MemoryError):
        photo.load_photo(encode(Image.new("RGB", (9, 9))))


def test_a_colour_profile_is_obeyed():
    plain = Image.new("RGB", (40, 40), (200, 100, 50))
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))  # of another colour model: the photo goes without
    for profile in (lab.tobytes(), b"not a profile"):
        assert (photo.load_photo(encode(plain, icc_profile=profile)) == (200, 100, 50)).all()
    srgb = bytearray(ImageCms.ImageCmsProfile(photo.SRGB).tobytes())
    assert np.abs(photo.load_photo(encode(plain, icc_profile=bytes(srgb))).astype(int) - (200, 100, 50)).max() <= 1
    # Red and blue primaries exchanged: a profile that is obeyed turns orange to blue.
    red, blue = srgb.index(b"rXYZ"), srgb.index(b"bXYZ")
    srgb[red : red + 4], srgb[blue : blue + 4] = b"bXYZ", b"rXYZ"
    swapped = photo.load_photo(encode(plain, icc_profile=bytes(srgb)))
    assert swapped[0, 0, 2] > swapped[0, 0, 0]


def test_the_answer_names_a_class_or_says_why_not():
    truck, ship, neither = photo.answer(0.9, -1), photo.answer(0.2, -1), photo.answer(0.9, 0.1)
    assert (truck["class"], truck["confidence"]) == ("Truck", 0.9)
    assert (ship["class"], ship["confidence"]) == ("Ship", 0.8)
    assert neither["class"] is None and neither["confidence"] is None and "neither" in neither["reason"]
    assert neither["probabilities"] == pytest.approx({"ship": 0.1, "truck": 0.9})
