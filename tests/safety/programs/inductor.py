"""What Inductor makes of a training's model."""

import torch
import torch._dynamo.utils
from cases import case, digest, main
from torch import nn
from torch._inductor import metrics

counters = torch._dynamo.utils.counters


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.hidden(x).tanh())


def counted(**results):
    inductor = {name: count for name, count in counters["inductor"].items() if "cache" not in name}
    return {
        "graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values()),
        "kernels": metrics.generated_kernel_count, "inductor": inductor,
        **{name: digest(result) for name, result in results.items()},
    }  # fmt: skip


@case
def training():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.compile()
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 4)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return counted(losses=losses, weights=model.state_dict())


main()
