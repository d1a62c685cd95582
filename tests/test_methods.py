"""Tests of methods that notebooks 05 to 07 define."""

import keras
import numpy as np
import pytest
from helpers import defined_in, some_images
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, logit
from sklearn.metrics import roc_auc_score


def test_the_temperature_of_answers_made_too_sure_is_found():
    scipy = {"minimize_scalar": minimize_scalar, "log_expit": log_expit, "logit": logit}
    fit_temperature = defined_in("06", "fit_temperature", np=np, **scipy)["fit_temperature"]
    random = np.random.default_rng(0)
    z = random.normal(0, 2, 50_000)
    labels = random.random(len(z)) < expit(z)
    assert fit_temperature(labels, expit(3 * z)) == pytest.approx(3, rel=0.05)


def test_errors_are_counted_from_the_most_confident_answer_on():
    errors_kept = defined_in("06", "errors_kept", np=np)["errors_kept"]
    correct, stated = np.array([True, False, True, False]), np.array([0.7, 0.6, 0.9, 0.8])
    assert errors_kept(correct, stated).tolist() == [0, 1, 1, 2]


def test_other_images_are_measured_in_the_right_direction():
    methods = defined_in("07", "auroc", np=np, roc_auc_score=roc_auc_score)
    known, others = np.arange(100), np.arange(50, 150)
    assert methods["auroc"](known, others) == pytest.approx(0.875, abs=0.01)
    assert methods["passing"](known, others) == pytest.approx(0.45, abs=0.02)


@pytest.mark.parametrize("layer", ["RandomLight", "RandomBlur"])
def test_jitter_changes_images_only_while_training(layer):
    x = some_images(20)[0].astype("float32")
    jitter = defined_in("07", layer, np=np, keras=keras, layers=keras.layers, ops=keras.ops)[layer]()
    assert (np.asarray(jitter(x, training=False)) == x).all()
    varied = np.asarray(jitter(x, training=True))
    assert (varied != x).any() and varied.min() >= 0 and varied.max() <= 255
