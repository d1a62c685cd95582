"""Tests of photo.py: every kind of image file becomes the same kind of array, and a bad one a clear sentence."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from service_helpers import chunk, encode, images_of, png, swapped_profile

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
    read, expected = photo.load_photo(encode(stored, exif=exif)), photo.load_photo(encode(upright))
    assert read.shape == expected.shape
    # Blocks of a large photo begin at the corner that is stored first, so they may lie a pixel apart.
    difference = np.abs(photo.to_thumbnail(read).astype(int) - photo.to_thumbnail(expected))
    assert difference.mean() < 2 if max(size) > photo.LONG_SIDE else difference.max() == 0


def test_webp_is_shown_as_it_is_stored_as_in_browsers():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert photo.load_photo(encode(Image.new("RGB", (40, 30)), "WEBP", exif=exif)).shape == (30, 40, 3)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize(
    "exif", [b"no TIFF header", b"II*\0" + b"\xff" * 40, b"II*\0\x08\0\0\0\1\0\x12\1\2\0\4\0\0\0abc\0"]
)
def test_broken_exif_does_not_matter(form, exif):
    image = Image.new("RGB", (40, 30), "navy")
    assert np.abs(photo.load_photo(encode(image, form, exif=b"Exif\0\0" + exif)).astype(int) - (0, 0, 128)).max() < 4


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


def test_no_edge_of_a_large_jpeg_is_lost():
    image = Image.fromarray(images_of("ship")[0]).resize((4031, 1023), Image.Resampling.BICUBIC)
    expected = photo.to_thumbnail(np.asarray(image)).astype(int)
    found = photo.to_thumbnail(photo.load_photo(encode(image, "JPEG", quality=95)))
    assert np.abs(found - expected).max() <= 4


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


# --- Right or refused: every kind of pixel -------------------------------------------------------

GREY = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
COLOUR = np.stack([GREY, GREY[::-1], GREY.T], axis=-1)
PLANES = np.moveaxis(COLOUR, -1, 0).copy()


def tiff(pixels, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def png16(pixels, extra=b""):
    """Return a PNG file of 16 bits a value, grey or RGB."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return png(width, height, 16, 0 if pixels.ndim == 2 else 2, zlib.compress(rows), extra)


def in_8_bits(pixels):
    pixels = pixels / 257
    return pixels if pixels.ndim == 3 else np.stack(3 * [pixels], axis=-1)


NO_WHITE = np.where(GREY[..., None] == 4096, 255, in_8_bits(GREY))
HALF = np.full((64, 64, 4), 128, np.uint8)  # grey 128, half transparent
KINDS = {
    "16 bits": (tiff(COLOUR, photometric="rgb"), in_8_bits(COLOUR)),
    "16 bits, planes": (tiff(PLANES, photometric="rgb", planarconfig="separate"), in_8_bits(COLOUR)),
    "16 bits, planes, deflated": (
        tiff(PLANES, photometric="rgb", planarconfig="separate", compression="zlib"),
        in_8_bits(COLOUR),
    ),
    "16 bits, tiles": (tiff(COLOUR, photometric="rgb", tile=(32, 32)), in_8_bits(COLOUR)),
    "16 bits, big-endian": (tiff(GREY, byteorder=">"), in_8_bits(GREY)),
    "16 bits, white is 0": (tiff(GREY, photometric="miniswhite"), 255 - in_8_bits(GREY)),
    "8 bits, white is 0": (tiff((GREY >> 8).astype(np.uint8), photometric="miniswhite"), 255 - in_8_bits(GREY)),
    "alpha": (tiff(HALF, photometric="rgb", extrasamples=["unassalpha"]), np.full((64, 64, 3), 191)),
    "alpha, multiplied in": (tiff(HALF, photometric="rgb", extrasamples=["assocalpha"]), np.full((64, 64, 3), 255)),
    "16 bits, alpha": (
        tiff(HALF.astype(np.uint16) * 257, photometric="rgb", extrasamples=["unassalpha"]),
        np.full((64, 64, 3), 191),
    ),
    "PNG, 16 bits": (png16(COLOUR), in_8_bits(COLOUR)),
    "PNG, 16 bits, one grey transparent": (png16(GREY, chunk(b"tRNS", struct.pack(">H", 4096))), NO_WHITE),
    "PNG, gamma": (png16(COLOUR, chunk(b"gAMA", struct.pack(">I", 100_000))), in_8_bits(COLOUR)),
    "PNG, text with a wrong checksum": (png16(GREY, chunk(b"tEXt", b"key\0text")[:-1] + b"?"), in_8_bits(GREY)),
    "PNG, 5 MB of text": (png16(GREY, chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(5_000_000)))), in_8_bits(GREY)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_right(kind):
    data, expected = KINDS[kind]
    assert np.abs(photo.load_photo(data) - expected).max() <= 1


@pytest.mark.parametrize(
    "data",
    [
        tiff(GREY.astype(np.float32)),
        tiff(GREY.astype(np.uint32)),
        tiff(GREY.astype(np.int16)),
        tiff(HALF.astype(np.uint16), photometric="separated"),
        encode(Image.new("LAB", (40, 30)), "TIFF"),
        tiff(np.zeros((64, 64, 5), np.uint8), photometric="rgb", extrasamples=["unspecified"] * 2),
        tiff(np.zeros((64, 64, 3), np.uint8), photometric="minisblack", extrasamples=["unspecified"] * 2),
    ],
    ids="floats integers signed cmyk lab rgb+2 grey+2".split(),
)
def test_pixels_whose_meaning_is_not_known_are_refused(data):
    with pytest.raises(photo.Unreadable, match="save it again"):
        photo.load_photo(data)


def test_a_jpeg_without_its_last_two_bytes_is_whole_and_without_more_is_not():
    data = encode(images_of("ship")[0], "JPEG")
    assert (photo.load_photo(data[:-2]) == photo.load_photo(data)).all()
    with pytest.raises(photo.Unreadable, match="damaged"):
        photo.load_photo(data[:-20])


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_half_a_file_is_refused(form):
    data = encode(images_of("ship")[0], form)
    with pytest.raises(photo.Unreadable, match="damaged"):
        photo.load_photo(data[: len(data) // 2])


def test_a_bmp_whose_palette_has_a_wrong_size_is_refused():
    data = bytearray(encode(Image.new("L", (40, 30)), "BMP"))
    data[46:50] = (300).to_bytes(4, "little")
    with pytest.raises(photo.Unreadable, match="damaged"):
        photo.load_photo(bytes(data))


def test_a_colour_profile_is_obeyed():
    plain = Image.new("RGB", (40, 40), (200, 100, 50))
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))  # of another colour model: the photo goes without
    for profile in (lab.tobytes(), b"not a profile"):
        assert (photo.load_photo(encode(plain, icc_profile=profile)) == (200, 100, 50)).all()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.abs(photo.load_photo(encode(plain, icc_profile=srgb)).astype(int) - (200, 100, 50)).max() <= 1
    swapped = photo.load_photo(encode(plain, icc_profile=swapped_profile()))
    assert swapped[0, 0, 2] > swapped[0, 0, 0]
    long = photo.load_photo(encode(plain, icc_profile=swapped_profile() + bytes(2_000_000)))
    assert (long == swapped).all()


def test_a_profile_and_transparency_go_together():
    see_through = Image.new("RGBA", (40, 40), (200, 100, 50, 128))
    opaque = photo.load_photo(encode(Image.new("RGB", (40, 40), (200, 100, 50)), icc_profile=swapped_profile()))
    both = photo.load_photo(encode(see_through, icc_profile=swapped_profile()))
    assert np.abs(both - (opaque * (128 / 255) + 255 * (127 / 255))).max() <= 1


def test_a_grey_photo_with_a_profile_of_colours_is_read_with_it_as_in_browsers():
    grey, colours = Image.new("L", (40, 40), 100), Image.new("RGB", (40, 40), (100, 100, 100))
    for form, options in (("PNG", {}), ("JPEG", {"quality": 100})):
        expected = photo.load_photo(encode(colours, form, icc_profile=swapped_profile(), **options))
        found = photo.load_photo(encode(grey, form, icc_profile=swapped_profile(), **options))
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_what_a_phone_or_camera_makes_is_read():
    for form, size in (("JPEG", (8160, 6120)), ("WEBP", (4000, 3000))):
        assert max(photo.load_photo(encode(Image.new("RGB", size), form)).shape) <= 1024


@pytest.mark.parametrize(
    "data",
    [
        png(50_000, 50_000, pixels=b""),
        png(10_001, 10_000, pixels=b""),
        encode(Image.new("1", (4, 4)), "BMP").replace(struct.pack("<ii", 4, 4), struct.pack("<ii", 10_001, 10_000)),
    ],
    ids=["much more", "a little more", "BMP"],
)
def test_more_than_100_million_pixels_are_refused_before_they_are_decoded(data):
    with pytest.raises(photo.TooLarge, match="more than 100,000,000; make it smaller"):
        photo.load_photo(data)


def test_the_answer_names_a_class_or_says_why_not():
    truck, ship, neither = photo.answer(0.9, -1), photo.answer(0.2, -1), photo.answer(0.9, 0.1)
    assert (truck["class"], truck["confidence"]) == ("Truck", 0.9)
    assert (ship["class"], ship["confidence"]) == ("Ship", 0.8)
    assert neither["class"] is None and neither["confidence"] is None and "neither" in neither["reason"]
    assert neither["probabilities"] == pytest.approx({"ship": 0.1, "truck": 0.9})
