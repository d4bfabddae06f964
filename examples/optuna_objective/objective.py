"""An objective as one writes it for Optuna: `python objective.py` runs it there, without a sweep."""

import numpy as np
import optuna
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split


def objective(trial):
    images, labels = load_digits(return_X_y=True)
    images, val_images, labels, val_labels = train_test_split(images / 16, labels, random_state=0)
    model = SGDClassifier(
        loss=trial.suggest_categorical("loss", ["hinge", "log_loss"]),
        alpha=trial.suggest_float("alpha", 1e-6, 1e-1, log=True),
        learning_rate="constant",
        eta0=trial.suggest_float("lr", 1e-4, 1.0, log=True),
        random_state=0,
    )
    for step in range(15):
        model.partial_fit(images, labels, classes=np.unique(labels))
        accuracy = model.score(val_images, val_labels)
        trial.report(accuracy, step)
        if trial.should_prune():
            raise optuna.TrialPruned()
    trial.set_user_attr("weights", model.coef_.size)
    return accuracy


if __name__ == "__main__":
    study = optuna.create_study(direction="maximize")
    study.optimize(objective, n_trials=20)
    print(study.best_value, study.best_params)
