"""Tests of methods that notebooks 05 to 08 define."""

import csv
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
from helpers import defined_in, some_images
from PIL import Image
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, logit
from scipy.stats import fisher_exact
from sklearn.metrics import roc_auc_score

import utils


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


@pytest.fixture
def judge_own():
    names = {"csv": csv, "Path": Path, "np": np, "Image": Image, "utils": utils, "fisher_exact": fisher_exact}
    yield defined_in("08", "judge_own", MY_PHOTOS="", **names)["judge_own"]
    plt.close("all")


def own_photos(folder, count, wrong):
    """Write a test set as the page saves it: so many ships, of which the CNN gets some wrong, and one that is neither."""
    lines = [f"{n}.jpg,ship,{0.9 if n < wrong else 0.1},0.1,0" for n in range(count)] + ["x.jpg,neither,0.9,0.9,1"]
    (folder / "own.csv").write_text("\n".join(["name,label,cnn,vgg16,refused", *lines]), encoding="utf-8")
    images = some_images(count + 1)[0].reshape(-1, 32, 3)
    Image.fromarray(images).save(folder / "own.png")
    return folder / "own.csv"


def test_photographs_of_one_s_own_are_compared_with_the_test_images(judge_own, tmp_path, capsys):
    judge_own(own_photos(tmp_path, 20, wrong=10))
    said = capsys.readouterr().out
    assert "50.00% of 20" in said and "100.00% of 20" in said
    test = utils.load_result("three_block_cnn")["test"]
    wrong = round(test["n"] * (1 - test["accuracy"]))
    expected = fisher_exact([[10, 10], [wrong, test["n"] - wrong]]).pvalue
    assert f"p = {expected:.2g}" in said and "wrong ones of 20 would show" in said


def test_photographs_of_one_s_own_that_do_not_fit_are_refused(judge_own, tmp_path):
    path = own_photos(tmp_path, 3, wrong=0)
    (tmp_path / "own.csv").write_text("name,label,cnn,vgg16,refused\n1.jpg,ship,0.1,0.1,0", encoding="utf-8")
    with pytest.raises(ValueError, match="has 1 rows, its images are 4"):
        judge_own(path)
    (tmp_path / "own.png").unlink()
    with pytest.raises(FileNotFoundError, match="own.png beside it"):
        judge_own(path)
