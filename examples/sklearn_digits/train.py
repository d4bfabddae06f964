"""A linear classifier of handwritten digits, trained epoch by epoch with scikit-learn's partial_fit."""

import joblib
import mlflow
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier

FIFTHS = {"train": [0, 1, 2], "validation": [3], "test": [4]}


def digits(split):
    images, labels = load_digits(return_X_y=True)
    fifth = np.random.default_rng(0).permutation(len(labels)) % 5
    rows = np.flatnonzero(np.isin(fifth, FIFTHS[split]))
    return rows, images[rows] / 16, labels[rows]


def train(trial):
    _, images, labels = digits("train")
    _, val_images, val_labels = digits("validation")
    if folder := trial.checkpoint():  # a paused or interrupted trial goes on
        model = joblib.load(folder / "model.joblib")
    else:
        values = {"learning_rate": "constant", "eta0": trial.params["lr"], "alpha": trial.params["alpha"]}
        model = SGDClassifier(loss="log_loss", random_state=trial.seed, **values)
    for epoch in trial.epochs():
        order = np.random.default_rng([trial.seed, epoch]).permutation(len(labels))
        model.partial_fit(images[order], labels[order], classes=range(10))
        accuracy = model.score(val_images, val_labels)
        trial.report({"val_accuracy": accuracy}, save=lambda to: joblib.dump(model, to / "model.joblib"))


def predict(checkpoint, split):
    """What the model says about each row of a split: `binsweep promote` judges by it."""
    rows, images, labels = digits(split)
    answers = joblib.load(checkpoint / "model.joblib").predict(images)
    return {"id": rows, "truth": labels, "prediction": answers, "input": images}


class Digits(mlflow.pyfunc.PythonModel):
    def __init__(self, classifier):
        self.classifier = classifier

    def predict(self, context, model_input, params=None):
        return self.classifier.predict(np.asarray(model_input))


def model(checkpoint):
    """What is registered and served."""
    return Digits(joblib.load(checkpoint / "model.joblib"))
