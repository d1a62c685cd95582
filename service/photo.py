"""From a photograph to an answer: what notebooks and service share. It needs no TensorFlow.

load_photo(path or bytes)      any image file -> (height, width, 3) uint8 RGB, upright
to_thumbnail(photo)            that -> (32, 32, 3) uint8 RGB, which is what the models see
answer(probability, neither)   the model's two numbers -> what a person is told
"""

import io
import logging
from pathlib import Path

import numpy as np
import pyvips
from PIL import BmpImagePlugin, Image

LONG_SIDE = 1024  # pixels of a loaded photo at most
SIZE = 32  # pixels of a thumbnail
MAX_PIXELS = 100_000_000  # a limit of time, and of memory where the service has no other
# What cameras, phones and web pages make: the first bytes of a file, and libvips's loader for it.
FORMATS = {
    b"\xff\xd8": "jpeg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF8": "gif",
    b"RIFF": "webp",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"BM": "bmp",
}
# Of these, black and white are known: by the kind of their numbers, how many there are of a pixel, alpha among them.
COLOURS = {"uchar": {"b-w": (1, 2), "srgb": (3, 4), "cmyk": (4,)}, "ushort": {"grey16": (1, 2), "rgb16": (3, 4)}}
pyvips.cache_set_max(0)  # no photo is read twice
logging.getLogger("pyvips").setLevel(logging.CRITICAL)  # what goes wrong is raised


class Unreadable(ValueError):
    """A file that is no image, or a damaged one: the fault of who sent it."""


class TooLarge(Unreadable):
    """A photo that would take more memory or time than it is given."""


def load_photo(source):
    """Read a photo: (height, width, 3) uint8 RGB, upright, its longer side at most 1,024 pixels if the shorter allows.

    source: a path, or the bytes of a file. Averages whole blocks of pixels of a larger photo, obeys the EXIF
    orientation and the ICC profile, scales 16 bits to 8, puts transparent pixels on white, takes the first frame of an
    animation. Raises FileNotFoundError, or Unreadable (a ValueError): TooLarge, no image, a damaged one, or one whose
    black and white are not known, such as one of floats. MemoryError is raised as it is.
    """
    name = "The file" if isinstance(source, bytes) else source
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise FileNotFoundError(f"no photo at {name}; give the path of a JPEG, PNG or other image file")
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    kind = next((kind for start, kind in FORMATS.items() if data.startswith(start)), None)
    if data[4:8] == b"ftyp" and b"avif" in data[8:40]:
        kind = "heif"
    if kind is None:
        raise Unreadable(f"{name} is not an image that can be read here; save it as JPEG or PNG")
    try:
        return _decode(data, kind)
    except Unreadable as error:
        raise type(error)(f"{name} {error}") from error
    except (pyvips.Error, OSError, SyntaxError, ValueError) as error:  # all but the first are Pillow's, for BMP
        reason = " ".join(str(getattr(error, "detail", error)).split())
        if "memory" in reason.lower():
            raise TooLarge(f"{name} takes too much memory to read ({reason}); make it smaller") from error
        raise Unreadable(f"{name} is damaged or unusual ({reason}); save it again as JPEG or PNG") from error


def _decode(data, kind):
    """Return load_photo()'s array of a file in a format of FORMATS."""
    try:
        image, factor = _open(data, kind)
        return _reduced(image, factor, turn=kind != "webp")  # which browsers show as it is stored
    except pyvips.Error as error:
        if kind != "jpeg" or "premature end" not in error.detail:
            raise
        # All pixels may be there, and only the mark of the end missing. If not, libjpeg warns.
        image, factor = _open(data + b"\xff\xd9", kind, fail_on="warning")
        return _reduced(image, factor, turn=True)


def _open(data, kind, fail_on="error"):
    """Return a file as a libvips image, not decoded yet, and by which factor it still has to be reduced."""
    if kind == "bmp":
        with BmpImagePlugin.BmpImageFile(io.BytesIO(data)) as picture:
            factor = _factor(picture)
            return pyvips.Image.new_from_array(np.asarray(picture.convert("RGB"))), factor
    load = getattr(pyvips.Image, kind + "load_buffer")
    options = {"access": "sequential", "fail_on": fail_on}
    if kind == "png":
        options["unlimited"] = True  # however much metadata it has
    image = load(data, **options)
    factor = _factor(image)
    if image.bands not in COLOURS.get(image.format, {}).get(image.interpretation, ()):
        colours = f"{image.bands} of {image.interpretation}, {image.format}"
        raise Unreadable(f"has pixels whose black and white are not known ({colours}); save it again as JPEG or PNG")
    if kind == "jpeg":  # at 1/2, 1/4 or 1/8 it is decoded much faster,
        # but libjpeg drops what is left at the edges.
        sides = (factor, image.width, image.height)
        options["shrink"] = max(scale for scale in (1, 2, 4, 8) if all(side % scale == 0 for side in sides))
        return load(data, **options), factor // options["shrink"]
    return image, factor


def _factor(image):
    if image.width * image.height > MAX_PIXELS:
        raise TooLarge(f"has {image.width * image.height:,} pixels, more than {MAX_PIXELS:,}; make it smaller")
    return max(1, min(-(-max(image.width, image.height) // LONG_SIDE), min(image.width, image.height) // SIZE))


def _reduced(image, factor, turn):
    """Return a libvips image as an array: in sRGB, on white, blocks of factor x factor pixels averaged, upright."""
    image = _to_srgb(image)
    if image.hasalpha():
        image = image.flatten(background=255)
    image = image.shrink(factor, factor, ceil=True).copy_memory()  # libvips reads a file from top to bottom only
    return (image.autorot() if turn else image).cast("uchar").numpy()


def _to_srgb(image):
    """Return an image in sRGB, 8 bits. A profile for another number of colours is ignored, as browsers do."""
    profile = image.get("icc-profile-data")[16:20] if image.get_typeof("icc-profile-data") else b""
    if image.interpretation == "cmyk":
        if profile != b"CMYK":  # as browsers do
            return (255 - image[:3]) * (255 - image[3]) / 255
    elif profile == b"RGB " and image.bands < 3:  # for a grey image, too, browsers use it
        image = image.colourspace("srgb" if image.format == "uchar" else "rgb16")
    elif profile != (b"GRAY" if image.bands < 3 else b"RGB "):
        return image.colourspace("srgb")
    return image.icc_transform("srgb", embedded=True, intent="relative", depth=8)


def to_thumbnail(photo):
    """Reduce a photo (height, width, 3) uint8 to the (32, 32, 3) uint8 that the models were trained on.

    The whole photo is squeezed into the square, whatever its shape, since ships are long and their ends matter;
    Lanczos reduction averages over all pixels. A 32x32 image stays as it is. Notebook 08 compares the alternatives.
    """
    return np.asarray(Image.fromarray(photo).resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def answer(probability, neither):
    """Put the model's numbers into words, as a dict that can go into JSON.

    probability: of truck, 0 to 1; neither: above 0 for what is neither ship nor truck. "confidence" is the
    probability of the class that is named, 0.5 to 1, or None where no class is named. It is meant for photos of ships
    and trucks; notebook 06 says how far it is right about them.
    """
    probabilities = {"ship": 1 - float(probability), "truck": float(probability)}
    result = {"class": None, "confidence": None, "probabilities": probabilities, "model": "vgg16_transfer"}
    if neither > 0:
        return result | {"reason": "This looks like neither a ship nor a truck."}
    name = "truck" if probability >= 0.5 else "ship"
    return result | {"class": name.capitalize(), "confidence": probabilities[name]}
