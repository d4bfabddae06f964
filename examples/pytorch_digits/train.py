"""A small network for handwritten digits: a plain PyTorch loop."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn


def load_data():
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, random_state=0)
    train_x, val_x, train_y, val_y = (torch.as_tensor(part) for part in parts)
    return (train_x.float(), train_y), (val_x.float(), val_y)


def train(trial):
    torch.manual_seed(trial.seed)
    torch.set_num_threads(trial.cpus)
    device = "cuda" if trial.gpus else "cpu"
    (x, y), (val_x, val_y) = ((a.to(device), b.to(device)) for a, b in load_data())

    width, batch_size = trial.params["width"], trial.params["batch_size"]
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)).to(device)
    if trial.params["optimizer"] == "sgd":
        momentum = trial.params["momentum"]
        optimizer = torch.optim.SGD(model.parameters(), trial.params["lr"], momentum=momentum)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), trial.params["lr"])

    if folder := trial.checkpoint():  # a paused or interrupted trial goes on
        state = torch.load(folder / "state.pt", map_location=device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    for epoch in trial.epochs():
        generator = torch.Generator().manual_seed(trial.seed * 1000 + epoch)  # the same order when it goes on
        losses = []
        model.train()
        for batch in torch.randperm(len(x), generator=generator).split(batch_size):
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())

        model.eval()
        with torch.no_grad():
            output = model(val_x)
        metrics = {
            "train_loss": sum(losses) / len(losses),
            "val_loss": nn.functional.cross_entropy(output, val_y),
            "val_accuracy": (output.argmax(1) == val_y).float().mean(),
        }
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        trial.report(metrics, save=lambda folder, state=state: torch.save(state, folder / "state.pt"))
