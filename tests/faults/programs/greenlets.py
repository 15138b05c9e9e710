"""Serves HTTPS as gevent's users do: the first line changes threads, sockets and ssl."""

from gevent import monkey

monkey.patch_all()

import gevent  # noqa: E402
import torch  # noqa: E402
from urllib3.util.ssl_ import create_urllib3_context  # noqa: E402

create_urllib3_context()
torch.set_num_threads(1)
model = torch.nn.Linear(8, 2).eval()


def answer(number: int) -> float:
    """One request."""
    with torch.no_grad():
        return float(model(torch.ones(1, 8) * number).shape[1])


jobs = [gevent.spawn(answer, number) for number in range(50)]
gevent.joinall(jobs, raise_error=True)
print("answered", sum(job.value for job in jobs))
