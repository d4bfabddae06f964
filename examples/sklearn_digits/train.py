"""A linear classifier of handwritten digits, trained epoch by epoch with scikit-learn's partial_fit."""

import joblib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split


def train(trial):
    images, labels = load_digits(return_X_y=True)
    images, val_images, labels, val_labels = train_test_split(images / 16, labels, random_state=0)

    if folder := trial.checkpoint():  # a paused or interrupted trial goes on
        model = joblib.load(folder / "model.joblib")
    else:
        values = {"learning_rate": "constant", "eta0": trial.params["lr"], "alpha": trial.params["alpha"]}
        model = SGDClassifier(loss="log_loss", random_state=trial.seed, **values)

    for epoch in trial.epochs():
        order = np.random.default_rng([trial.seed, epoch]).permutation(len(labels))
        model.partial_fit(images[order], labels[order], classes=range(10))
        accuracy = model.score(val_images, val_labels)
        trial.report(
            {"val_accuracy": accuracy}, save=lambda folder: joblib.dump(model, folder / "model.joblib")
        )
