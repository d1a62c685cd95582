"""From a photograph to an answer: what notebooks and service share. It needs no TensorFlow.

    load_photo(path or bytes)         any image file -> (height, width, 3) uint8 RGB, upright
    to_thumbnail(photo)               that -> (32, 32, 3) uint8 RGB, which is what the models see
    answer(probability, strangeness)  the model's two numbers -> what a person is told
"""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError, features

# What cameras, phones and web pages make. Each further decoder would be one more to attack.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 25_000_000  # to decode; most JPEGs may have more, since they can be decoded at a smaller scale
LONG_SIDE = 1024  # pixels of a loaded photo at most
SIZE = 32  # pixels of a thumbnail
SRGB = ImageCms.createProfile("sRGB")


class Unreadable(ValueError):
    """A file that is no image, or a damaged one: the fault of who sent it."""


class TooLarge(Unreadable):
    """A photo with more pixels than will be decoded."""


def load_photo(source):
    """Read a photo: (height, width, 3) uint8 RGB, upright, its longer side at most 1,024 pixels if the shorter allows.

    source: a path, or the bytes of a file. Obeys the EXIF orientation and the ICC profile, scales 16-bit greyscale to
    8 bits, puts transparent pixels on white, takes the first frame of an animation, averages whole blocks of pixels
    of a larger photo. Raises FileNotFoundError, or Unreadable (a ValueError): TooLarge, no image, or a damaged one.
    What is not the file's fault (no memory, a Pillow without a decoder) is raised as it is.
    """
    file, name = (io.BytesIO(source), "the file") if isinstance(source, bytes) else (Path(source), source)
    if isinstance(file, Path) and not file.is_file():
        raise FileNotFoundError(f"no photo at {name}; give the path of a JPEG, PNG or other image file")
    too_large = TooLarge(f"{name} has too many pixels, more than {MAX_PIXELS:,} to decode; make it smaller")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata, and sizes that are checked here
            with Image.open(file, formats=FORMATS) as image:
                pixels = image.width * image.height
                image.draft("RGB", (LONG_SIDE, LONG_SIDE))  # a JPEG is decoded at 1/2, 1/4 or 1/8 where that will do
                if not image.info.get("progressive"):  # a progressive one is held in full all the same
                    pixels = image.width * image.height
                if pixels <= MAX_PIXELS:
                    return _decode(image)
    except Image.DecompressionBombError:
        raise too_large from None
    except UnidentifiedImageError:
        missing = missing_decoders()
        if missing:
            raise RuntimeError(f"Pillow was built without {', '.join(missing)}; install one with it") from None
        raise Unreadable(f"{name} is not an image that can be read here; save it as JPEG or PNG") from None
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        if "not available" in str(error):  # "decoder jpeg not available"
            raise
        raise Unreadable(f"{name} can't be read as an image ({error}); save it again as JPEG or PNG") from error
    raise too_large


def missing_decoders():
    """Return the names of Pillow's optional parts that FORMATS need and this Pillow lacks."""
    return [name for name in ("jpg", "zlib", "webp", "libtiff", "littlecms2") if not features.check(name)]


def _decode(image):
    """Turn an open Pillow image into load_photo()'s array: first to few pixels, then to colours."""
    profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit greyscale, which convert() would clip at 255
        image = Image.fromarray((np.asarray(image).astype(np.uint32) // 257).clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    image = image.reduce(max(1, min(-(-max(image.size) // LONG_SIDE), min(image.size) // SIZE)))
    if profile:
        try:
            image = ImageCms.profileToProfile(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), SRGB,
                                              outputMode="RGBA" if image.mode == "RGBA" else "RGB")
        except (ImageCms.PyCMSError, OSError):
            pass  # a broken profile, or one of another colour model: as in browsers, the photo goes without it
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def to_thumbnail(photo):
    """Reduce a photo (height, width, 3) uint8 to the (32, 32, 3) uint8 that the models were trained on.

    The whole photo is squeezed into the square, whatever its shape, since ships are long and their ends matter;
    Lanczos reduction averages over all pixels. A 32x32 image stays as it is. Notebook 08 compares the alternatives.
    """
    return np.asarray(Image.fromarray(photo).resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def answer(probability, strangeness):
    """Put the model's numbers into words, as a dict that can go into JSON.

    probability: of truck, 0 to 1; strangeness: above 0 for what is neither ship nor truck. "confidence" is the
    calibrated probability of the class that is named, 0.5 to 1: of answers with 0.9, nine in ten should be right, among
    photos of ships and trucks. It is None where no class is named.
    """
    probabilities = {"ship": 1 - float(probability), "truck": float(probability)}
    result = {"class": None, "confidence": None, "probabilities": probabilities, "model": "vgg16_transfer"}
    if strangeness > 0:
        return result | {"reason": "This looks like neither a ship nor a truck."}
    name = max(probabilities, key=probabilities.get)
    return result | {"class": name.capitalize(), "confidence": probabilities[name]}
