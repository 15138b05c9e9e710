"""The persistent cache, cold and then warm; the program counts by a listener of its own."""

import json
import tempfile
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np

heard = Counter()
jax.monitoring.register_event_listener(lambda event, **_: heard.update([event.rsplit("/", 1)[1]]))
jax.monitoring.register_event_duration_secs_listener(lambda event, _, **__: heard.update([event.rsplit("/", 1)[1]]))
jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@jax.jit
def train(w, x, y):
    loss, grad = jax.value_and_grad(lambda w: jnp.mean((x @ w - y) ** 2))(w)
    return w - 0.1 * grad, loss


rng = np.random.default_rng(0)
x, y = rng.normal(size=(16, 8)).astype("f"), rng.normal(size=(16, 2)).astype("f")
steps = 0
for _ in range(2):
    w = np.zeros((8, 2), "f")
    for _ in range(4):
        w, loss = train(w, x, y)
        print("loss", steps, float(loss))
        steps += 1
    jax.clear_caches()
hits = heard["cache_hits"]
truth = {
    "exit": 0,
    "steps": steps,
    "compiles": heard["backend_compile_duration"] - hits,
    "cache_hits": hits,
    "cache_misses": heard["compile_requests_use_cache"] - hits,
    "recompiles": 0,
}
assert hits > 0
print("truth", json.dumps(truth))
