"""Tests of VGG16's weights and features."""

import keras
import numpy as np
import pytest
from helpers import defined_in, some_images

import utils
from scripts import benchmark

TAP = {"image_size": 32, "layer": "block4_pool", "grid": 1, "mirror": False}


@pytest.fixture(scope="module")
def base():
    return utils.load_vgg16(policy="float32")


def test_shipped_weights_load_and_are_frozen(base):
    assert utils.count_parameters(base) == {"trainable": 0, "frozen": 14_714_688}
    # First kernel value (of the input channel that Caffe counts first) and bias of the published weights.
    kernel, bias = base.get_layer("block1_conv1").get_weights()
    assert kernel[0, 0, 2, 0] == pytest.approx(0.4800154, rel=1e-3) and bias[0] == pytest.approx(0.73429835, rel=1e-3)


def test_damaged_weights_are_refused(tmp_path):
    path = tmp_path / "vgg16_imagenet_notop.weights.h5"
    path.write_bytes((utils.DATA / path.name).read_bytes()[:-1000])
    with pytest.raises(ValueError, match="is damaged.*git checkout"):
        utils.load_vgg16(path)
    keras.applications.VGG16(include_top=False, weights=None).save_weights(path)
    with pytest.raises(ValueError, match="holds other weights: their SHA-256"):
        utils.load_vgg16(path)


def test_the_download_route_gives_the_same_weights(base, tmp_path, monkeypatch):
    shipped = str(utils.DATA / "vgg16_imagenet_notop.weights.h5")
    monkeypatch.setattr("keras.src.applications.vgg16.file_utils.get_file", lambda *_, **__: shipped)
    write_weights = defined_in("03", "write_weights", utils=utils, keras=keras)["write_weights"]
    path = tmp_path / "vgg16_imagenet_notop.weights.h5"
    write_weights(utils.load_vgg16("imagenet"), path)
    assert utils.weights_sha256(utils.load_vgg16(path)) == utils.weights_sha256(base)


@pytest.mark.parametrize("layer", ["block4_pool", "block5_pool"])
def test_features_are_those_of_keras_and_come_from_the_cache(output, base, monkeypatch, layer):
    x = some_images(3)[0]
    features = utils.vgg16_features(base, x, 64, layer, 2, mirror=True)
    assert features.dtype == np.float16 and features.shape == (3, 2, 2048)
    for view, images in enumerate((x, x[:, :, ::-1])):
        enlarged = keras.ops.image.resize(images.astype("float32"), (64, 64))
        convolutions = keras.Model(base.input, base.get_layer(layer).output)
        maps = convolutions(keras.applications.vgg16.preprocess_input(enlarged))
        cells = np.asarray(keras.ops.average_pool(maps, maps.shape[1] // 2)).reshape(3, -1)
        assert features[:, view] == pytest.approx(cells, rel=2e-3, abs=1e-2)
    monkeypatch.setattr(utils, "_compute_features", None)  # a second extraction would now fail
    assert (utils.vgg16_features(base, x, 64, layer, 2, mirror=True) == features).all()


@pytest.mark.parametrize("change", ["image", "weights", "image_size", "layer", "grid", "extractor", "precision"])
def test_stale_features_are_never_used(output, base, change, monkeypatch):
    monkeypatch.setattr(utils, "_compute_features", lambda extractor, x, unit: np.zeros((len(x), 1), np.float16))
    x, tap = some_images(2)[0], dict(TAP)
    utils.vgg16_features(base, x, **tap)
    if change == "image":
        x = x.copy()
        x[0, 0, 0, 0] ^= 1
    if change == "weights":
        monkeypatch.setattr(utils, "weights_sha256", lambda model: "other")
    if change == "precision":
        base = utils.load_vgg16(policy="mixed_bfloat16")
    if change == "extractor":
        source = utils.inspect.getsource(utils.vgg16_extractor)
        monkeypatch.setattr(utils.inspect, "getsource", lambda function: source + "    # another resampling\n")
    others = {"image_size": 64, "layer": "block3_pool", "grid": 2}
    utils.vgg16_features(base, x, **(tap | {key: value for key, value in others.items() if key == change}))
    assert len(list((output / "cache").iterdir())) == 2


def test_in_bfloat16_the_features_are_nearly_the_same(output):
    x = some_images(2)[0]
    exact, rounded = (
        utils.vgg16_features(utils.load_vgg16(policy=policy), x, **TAP).astype("float32")
        for policy in ("float32", "mixed_bfloat16")
    )
    assert 0.0005 < np.abs(exact - rounded).mean() / exact.mean() < 0.02
    assert keras.config.dtype_policy().name == "float32"  # what is built next is not in bfloat16


def test_an_interrupted_extraction_leaves_no_file(output, base, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        utils.vgg16_features(base, some_images(2)[0], **TAP)
    assert not list((output / "cache").iterdir())


@pytest.mark.parametrize(
    "tap, complaint",
    [
        ({"layer": "block4"}, "layer is 'block4', expected one of VGG16's: block1_conv1, "),
        ({"image_size": 96, "grid": 4}, "grid is 4; at 96 px block4_pool is 6 cells wide, divided by 1, 2, 3, 6"),
    ],
)
def test_a_tap_that_cannot_be_gets_a_sentence(base, tap, complaint):
    chosen = {name: value for name, value in (TAP | tap).items() if name != "mirror"}
    with pytest.raises(ValueError, match=complaint):
        utils.vgg16_extractor(base, **chosen)


def test_the_benchmark_counts_vgg16_s_operations_as_the_literature_does(base):
    """Its convolutions take 15.35 thousand million multiply-adds for 224x224 pixels."""
    assert benchmark.convolution_operations(base, 224, "block5_pool") == pytest.approx(2 * 15.35e9, rel=0.01)
    assert benchmark.convolution_operations(base, 112, "block5_pool") == pytest.approx(2 * 15.35e9 / 4, rel=0.01)
