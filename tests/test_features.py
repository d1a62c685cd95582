"""Tests of VGG16's weights and features."""

import re

import keras
import numpy as np
import pytest
from helpers import some_images

import utils

WEIGHTS = utils.ROOT / "data" / "vgg16_imagenet_notop.weights.h5"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache/."""
    monkeypatch.setattr(utils, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def test_shipped_weights_are_those_published():
    base = keras.applications.VGG16(include_top=False, weights=str(WEIGHTS))
    # First kernel value (of the input channel that Caffe counts first) and bias of the published weights.
    kernel, bias = base.get_layer("block1_conv1").get_weights()
    assert kernel[0, 0, 2, 0] == pytest.approx(0.4800154, rel=1e-3) and bias[0] == pytest.approx(0.73429835, rel=1e-3)
    card = (utils.ROOT / "data" / "README.md").read_text(encoding="utf-8")
    assert utils.sha256(base.get_weights()) in card


def test_the_data_card_s_way_to_the_weights_gives_the_shipped_ones(tmp_path, monkeypatch):
    """The download itself is replaced by the file that is there."""
    monkeypatch.setattr("keras.src.applications.vgg16.file_utils.get_file", lambda *_, **__: str(WEIGHTS))
    monkeypatch.chdir(tmp_path)
    card = (utils.ROOT / "data" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    try:
        exec(code, {})
    finally:
        keras.config.set_dtype_policy("float32")
    ours, shipped = (keras.applications.VGG16(include_top=False, weights=str(path)) for path in (WEIGHTS.name, WEIGHTS))
    assert utils.sha256(ours.get_weights()) == utils.sha256(shipped.get_weights())


def test_features_are_those_of_keras():
    x, extractor = some_images(3)[0], utils.vgg16_extractor()
    features = extractor.predict(x, verbose=0)
    base = keras.applications.VGG16(include_top=False, weights=str(WEIGHTS))
    convolutions = keras.Model(base.input, base.get_layer("block4_pool").output)
    enlarged = keras.ops.image.resize(x.astype("float32"), (64, 64))
    maps = convolutions(keras.applications.vgg16.preprocess_input(enlarged))
    assert features == pytest.approx(np.asarray(maps).reshape(3, -1), rel=2e-3, abs=1e-2)
    assert not extractor.trainable_weights and features.shape == (3, 4 * 4 * 512)


def network(units=2, seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((32, 32, 3))
    return keras.Model(inputs, keras.layers.Dense(units)(keras.layers.Flatten()(inputs)), name="small")


def test_what_was_predicted_comes_from_the_cache(cache, monkeypatch):
    x, model = some_images(20)[0], network()
    first = utils.predict_once(model, x)
    assert first.dtype == np.float16 and first == pytest.approx(model.predict(x, verbose=0), rel=1e-2)
    monkeypatch.setattr(np, "save", None)  # a second prediction would now fail
    assert (utils.predict_once(model, x) == first).all()


@pytest.mark.parametrize("change", ["image", "weights", "architecture"])
def test_stale_predictions_are_never_used(cache, change):
    x = some_images(20)[0]
    utils.predict_once(network(), x)
    if change == "image":
        x[-1, 0, 0, 0] ^= 1
    model = network(units=3 if change == "architecture" else 2, seed=1 if change == "weights" else 0)
    utils.predict_once(model, x)
    assert len(list(cache.glob("*.npy"))) == 2


def test_an_interrupted_prediction_leaves_no_file(cache, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        utils.predict_once(network(), some_images(2)[0])
    assert not list(cache.glob("*.npy"))
