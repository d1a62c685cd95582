"""Tests of VGG16's weights and features: of utils.py, and of what notebook 03 defines."""

import inspect

import keras
import numpy as np
import pytest
from test_data import some_images

import utils

transfer = utils.definitions("03_vgg16_transfer_learning")
SETTINGS = {"image_size": 32, "layer": "block4_pool", "grid": 1, "mirror": True}


@pytest.fixture(scope="module")
def base():
    return utils.load_vgg16()


def test_shipped_weights_load_in_keras_by_themselves_and_are_frozen(base):
    assert utils.count_parameters(base) == {"trainable": 0, "frozen": 14_714_688}
    # First kernel value (of the input channel that Caffe counts first) and bias of the published weights.
    kernel, bias = base.get_layer("block1_conv1").get_weights()
    assert kernel[0, 0, 2, 0] == pytest.approx(0.4800154, rel=1e-3) and bias[0] == pytest.approx(0.73429835, rel=1e-3)


def test_other_weights_are_refused(tmp_path):
    path = tmp_path / "vgg16_imagenet_notop.weights.h5"
    keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(64, 3)]).save_weights(path)
    with pytest.raises(ValueError, match="is damaged: its SHA-256"):
        utils.load_vgg16(path)


def test_the_download_route_gives_the_same_weights(base, tmp_path, monkeypatch):
    monkeypatch.setattr("keras.src.applications.vgg16.file_utils.get_file",
                        lambda *_, **__: str(utils.DATA / "vgg16_imagenet_notop.weights.h5"))
    transfer["write_weights"](utils.load_vgg16("imagenet"), tmp_path / "again.weights.h5")
    again = keras.applications.VGG16(include_top=False, weights=str(tmp_path / "again.weights.h5"))
    assert transfer["weights_sha256"](again) == transfer["weights_sha256"](base)


@pytest.mark.parametrize("layer", ["block4_pool", "block5_pool"])
def test_features_are_those_of_keras_and_come_from_the_cache(output, base, monkeypatch, layer):
    x, settings = some_images(3)[0], {**SETTINGS, "image_size": 64, "layer": layer, "grid": 2}
    features = transfer["cached_features"](base, x, settings)
    enlarged = keras.ops.image.resize(x.astype("float32"), (64, 64))
    maps = keras.Model(base.input, base.get_layer(layer).output)(keras.applications.vgg16.preprocess_input(enlarged))
    cells = keras.ops.average_pool(maps, maps.shape[1] // 2)
    assert features.dtype == np.float16 and features.shape == (3, 2048)
    assert features == pytest.approx(np.asarray(cells).reshape(3, -1), rel=2e-3, abs=1e-2)

    monkeypatch.setitem(transfer, "compute_features", None)  # a second extraction would now fail
    assert (transfer["cached_features"](base, x, settings) == features).all()


@pytest.mark.parametrize("change", ["image", "weights", "image_size", "layer", "grid", "extractor"])
def test_stale_features_are_never_used(output, base, change, monkeypatch):
    x, settings = some_images(2)[0], dict(SETTINGS)
    monkeypatch.setitem(transfer, "compute_features", lambda extractor, x, unit: np.zeros((len(x), 1), np.float16))
    transfer["cached_features"](base, x, settings)
    if change == "image":
        x = x.copy()
        x[0, 0, 0, 0] ^= 1
    if change == "weights":
        monkeypatch.setitem(transfer, "weights_sha256", lambda model: "other")
    if change == "extractor":
        source = inspect.getsource(utils.vgg16_extractor)
        monkeypatch.setattr(inspect, "getsource", lambda function: source + "    # another resampling\n")
    settings |= {key: value for key, value in {"image_size": 64, "layer": "block3_pool", "grid": 2}.items() if key == change}
    transfer["cached_features"](base, x, settings)
    assert len(list((output / "cache").iterdir())) == 2


def test_an_interrupted_extraction_leaves_no_file(output, base, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(np, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        transfer["cached_features"](base, some_images(2)[0], SETTINGS)
    assert not list((output / "cache").iterdir())


def test_both_views_of_an_image_are_kept(output, base):
    x = some_images(2)[0]
    both = transfer["features_of"](base, x, SETTINGS)
    assert both.shape == (2, 2, 512)
    assert (both[:, 1] == transfer["features_of"](base, x[:, :, ::-1], SETTINGS)[:, 0]).all()
    assert transfer["features_of"](base, x, {**SETTINGS, "mirror": False}).shape == (2, 1, 512)
