"""A training that saves a checkpoint twice and loads the first one back."""

import json
import tempfile
from pathlib import Path

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(8, 1)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
steps, saved = 10, 0
with tempfile.TemporaryDirectory() as folder:
    for step in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(torch.randn(4, 8)), torch.randn(4, 1))
        loss.backward()
        optimizer.step()
        print("loss", step, repr(loss.item()))
        if step % 5 == 4:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state, Path(folder) / f"step{step}.pt")
            saved += 1
    state = torch.load(Path(folder) / "step4.pt")
    model.load_state_dict(state["model"])
    print("restored step", state["step"], repr(model.weight.sum().item()))
truth = {"steps": steps, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0, "micro_batches": steps}
print("truth", json.dumps({**truth, "samples": None, "exit": 0, "checkpoints_saved": saved, "checkpoints_loaded": 1}))
