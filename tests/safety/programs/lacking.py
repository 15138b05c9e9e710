"""An ordinary training that needs nothing of what an older torch lacks."""

import io

import torch
from cases import case, digest, main
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


@case
def training():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for (x,) in DataLoader(TensorDataset(torch.randn(40, 4)), batch_size=4, shuffle=True):
        model.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        losses.append(model(torch.ones(1, 4)).item())
    torch.save(model.state_dict(), io.BytesIO())
    return [digest(losses), digest(model.state_dict())]


main()
