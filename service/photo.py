"""From a photograph to an answer: what notebooks and service share. It needs no TensorFlow.

load_photo(path or bytes)         any image file -> (height, width, 3) uint8 RGB, upright
to_thumbnail(photo)               that -> (32, 32, 3) uint8 RGB, which is what the models see
answer(probability, strangeness)  the model's two numbers -> what a person is told
"""

import io
import math
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError

# What cameras, phones and web pages make. Each further decoder would be one more to attack.
OTHER_FORMATS = ("PNG", "WEBP", "GIF", "BMP", "TIFF")  # than JPEG
MAX_MEMORY = 72_000_000  # bytes that decoding a photo may take; service/README.md says why not more
BYTES_A_PIXEL = {"PNG": 4, "WEBP": 16, "GIF": 4, "BMP": 4, "TIFF": 16}  # at most, measured, while it is decoded
MAX_JPEG_PIXELS = 100_000_000  # which bounds the time
MAX_SCANS = 100  # of a JPEG file; programs write about ten, and each costs the time of a whole picture
MAX_JPEG_HEADER = 2_000_000  # bytes; Pillow takes many times as many to read some kinds of metadata
MAX_EXIF = 65_536  # bytes that are looked at for the orientation; a camera can't write more
MAX_TIFF_VALUES = 20_000  # of a tag; a TIFF file has as many offsets as strips, and Pillow takes 280 bytes for each
LONG_SIDE = 1024  # pixels of a loaded photo at most
SIZE = 32  # pixels of a thumbnail
SRGB = ImageCms.createProfile("sRGB")
# Pillow allocates for a GIF file before it says how many pixels that has, but never for more than twice this number.
Image.MAX_IMAGE_PIXELS = MAX_MEMORY // 8
PngImagePlugin.MAX_TEXT_MEMORY = 4_000_000


class Unreadable(ValueError):
    """A file that is no image, or a damaged one: the fault of who sent it."""


class TooLarge(Unreadable):
    """A photo that would take more memory or time than it is given."""


def load_photo(source):
    """Read a photo: (height, width, 3) uint8 RGB, upright, its longer side at most 1,024 pixels if the shorter allows.

    source: a path, or the bytes of a file. Averages whole blocks of pixels of a larger photo, obeys the EXIF
    orientation and the ICC profile, scales 16-bit greyscale to 8 bits, puts transparent pixels on white, takes the
    first frame of an animation. Raises FileNotFoundError, or Unreadable (a ValueError): TooLarge, no image, a damaged
    one, or one of floats or 32-bit integers. MemoryError is raised as it is.
    """
    name = "The file" if isinstance(source, bytes) else source
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise FileNotFoundError(f"no photo at {name}; give the path of a JPEG, PNG or other image file")
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    too_large = (
        f"{name} has too many pixels; a WebP or TIFF file may have {MAX_MEMORY // 16:,}, most others "
        f"{MAX_MEMORY // 4:,}; make it smaller, or save it as a JPEG that is not progressive"
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata, and sizes that are checked here
            with _opened(data) as image:
                if _memory(image, data) > MAX_MEMORY:
                    raise TooLarge(too_large)
                return _decode(image)
    except Image.DecompressionBombError:
        raise TooLarge(too_large) from None
    except UnidentifiedImageError:
        raise Unreadable(f"{name} is not an image that can be read here; save it as JPEG or PNG") from None
    except (MemoryError, TooLarge):
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        raise Unreadable(f"{name} is damaged or unusual ({error}); save it again as JPEG or PNG") from error


def _opened(data):
    """Return a file as an open Pillow image, not decoded yet."""
    if data.startswith(b"\xff\xd8"):
        return JpegImagePlugin.JpegImageFile(io.BytesIO(data))  # Image.open() would refuse those of many pixels
    if data.startswith((b"II", b"MM")):
        _check_tiff(data)
    return Image.open(io.BytesIO(data), formats=OTHER_FORMATS)


def _memory(image, data):
    """Return how many bytes decoding will take at most, from the number of all pixels."""
    pixels = image.width * image.height
    if image.format == "JPEG":
        if pixels > MAX_JPEG_PIXELS:
            return math.inf
        image.draft("RGB", (LONG_SIDE, LONG_SIDE))  # decodes it at 1/2, 1/4 or 1/8 where that will do
        return _coefficients(data) + 4 * image.width * image.height
    if image.format == "TIFF":  # a tile may be larger than the picture
        pixels = max(pixels, image.tag_v2.get(322, 0) * image.tag_v2.get(323, 0))
    return pixels * BYTES_A_PIXEL[image.format]


def _coefficients(data):
    """Return how many bytes of coefficients libjpeg will hold of a JPEG file: of one in several scans, all of them.

    Follows the markers up to the first scan, as libjpeg does, which decides there.
    """
    at, frame = 2, b""
    while True:
        at = data.index(b"\xff", at)
        while data[at] == 0xFF:
            at += 1
        marker, length = data[at], int.from_bytes(data[at + 1 : at + 3])
        if marker == 0xDA:
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            kind, frame = marker, data[at + 1 : at + 1 + length]
        has_body = marker > 1 and not 0xD0 <= marker <= 0xD9
        at += 1 + (max(2, length) if has_body else 0)
    if at > MAX_JPEG_HEADER:
        raise TooLarge(f"The file has more than {MAX_JPEG_HEADER:,} bytes of metadata; save the photo without them")
    height, width, components = struct.unpack(">HHB", frame[3:8])
    if kind in (0xC0, 0xC1, 0xC9) and data[at + 3] == components:
        return 0
    if data.count(b"\xff\xda", at - 1) > MAX_SCANS:
        raise TooLarge(f"The file has more than {MAX_SCANS} scans; save it again as a plain JPEG")
    across, down = zip(*(divmod(sampling, 16) for sampling in frame[9 : 9 + 3 * components : 3]), strict=True)
    return 2 * width * height * sum(a * d for a, d in zip(across, down, strict=True)) // (max(across) * max(down))


def _check_tiff(data):
    """Raise Unreadable where reading a TIFF file's tags alone would take a lot of memory."""
    if data[:4] not in (b"II*\0", b"MM\0*"):
        raise ValueError("it is no TIFF file of the usual kind")
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    for tag, kind, values in struct.iter_unpack(order + "HHI4x", data[start + 2 : start + 2 + 12 * count]):
        as_bytes = kind in (1, 2, 7) and tag not in (273, 324)  # Pillow keeps them as they are, but for offsets
        if values > MAX_TIFF_VALUES and not as_bytes:
            raise TooLarge(f"The file has a TIFF tag of more than {MAX_TIFF_VALUES:,} values; save it as PNG")


def _decode(image):
    """Turn an open Pillow image into load_photo()'s array."""
    if image.mode in ("I", "F"):
        raise ValueError("pixels of 32 bits or floats, whose black and white are not known")
    profile, orientation = image.info.get("icc_profile"), _orientation(image)
    factor = max(1, min(-(-max(image.size) // LONG_SIDE), min(image.size) // SIZE))
    image = _reduced_and_upright(image, factor, orientation)
    if profile:
        try:
            image = ImageCms.profileToProfile(
                image,
                ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                SRGB,
                outputMode="RGBA" if image.mode == "RGBA" else "RGB",
            )
        except (ImageCms.PyCMSError, OSError):
            pass  # a broken profile, or one of another colour model: as in browsers, the photo goes without it
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _orientation(image):
    """Return the EXIF orientation, 1 (upright) where there is none that can be read."""
    image.load()  # a PNG file may have it behind the pixels
    if len(image.info.get("exif", b"")) > MAX_EXIF:
        return 1
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises nearly anything here, too, and the pixels are sound
        return 1


def _reduced_and_upright(image, factor, orientation):
    """Return the image as L, RGB, RGBA or CMYK, upright, with blocks of factor x factor pixels averaged.

    Goes from strip to strip: Pillow's conversions would take several times the memory of a whole large image.
    """
    from_right, from_bottom = orientation in (2, 3, 7, 8), orientation in (3, 4, 6, 7)
    rows = factor * max(1, 1_000_000 // (factor * image.width))
    strips = []
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        box = (image.height - bottom, image.height - top) if from_bottom else (top, bottom)
        strip = image.crop((0, box[0], image.width, box[1]))
        if strip.mode.startswith("I;16"):  # which convert() would clip at 255
            strip = Image.fromarray((np.asarray(strip) // 257).astype(np.uint8))
        elif strip.has_transparency_data:
            strip = strip.convert("RGBA")
        elif strip.mode not in ("L", "RGB", "CMYK"):
            strip = strip.convert("RGB")
        strip = ImageOps.mirror(strip) if from_right else strip
        strip = ImageOps.flip(strip) if from_bottom else strip
        strips.append(strip.reduce(factor))
    whole = Image.new(strips[0].mode, (strips[0].width, sum(strip.height for strip in strips)))
    for number, strip in enumerate(strips):
        whole.paste(strip, (0, number * rows // factor))
    return whole.transpose(Image.Transpose.TRANSPOSE) if orientation in (5, 6, 7, 8) else whole


def to_thumbnail(photo):
    """Reduce a photo (height, width, 3) uint8 to the (32, 32, 3) uint8 that the models were trained on.

    The whole photo is squeezed into the square, whatever its shape, since ships are long and their ends matter;
    Lanczos reduction averages over all pixels. A 32x32 image stays as it is. Notebook 08 compares the alternatives.
    """
    return np.asarray(Image.fromarray(photo).resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def answer(probability, strangeness):
    """Put the model's numbers into words, as a dict that can go into JSON.

    probability: of truck, 0 to 1; strangeness: above 0 for what is neither ship nor truck. "confidence" is the
    probability of the class that is named, 0.5 to 1, or None where no class is named. It is meant for photos of ships
    and trucks; notebook 06 says how far it is right about them.
    """
    probabilities = {"ship": 1 - float(probability), "truck": float(probability)}
    result = {"class": None, "confidence": None, "probabilities": probabilities, "model": "vgg16_transfer"}
    if strangeness > 0:
        return result | {"reason": "This looks like neither a ship nor a truck."}
    name = max(probabilities, key=probabilities.get)
    return result | {"class": name.capitalize(), "confidence": probabilities[name]}
