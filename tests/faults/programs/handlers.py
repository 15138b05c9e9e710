"""Logs through handlers as careless ones are: one logs, one raises, and stderr itself is a logger."""

import logging
import sys
import time

from tiny import Tiny


class Logs(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.name != "inner":
            logging.getLogger("inner").warning("heard %s", record.name)


class Raises(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "program":
            raise RuntimeError("a handler's own")


class Redirected:
    def write(self, text: str) -> None:
        if text.strip():
            logging.getLogger("stderr").error(text.rstrip())

    def flush(self) -> None:
        pass


logging.basicConfig(stream=sys.stdout, level=logging.DEBUG, format="%(name)s %(message)s")
if sys.argv[1:] != ["audible"]:
    logging.getLogger("otel_ml").setLevel(logging.CRITICAL)  # of what it prints, only its own is compared
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
logging.getLogger().addHandler(Logs())
logging.getLogger("program").addHandler(Raises())
sys.stderr = Redirected()
tiny = Tiny()
for step in range(5):
    try:
        logging.getLogger("program").info("step %d", step)
    except RuntimeError as error:
        print("raised", error)
    print("words", file=sys.stderr)
    print("loss", step, repr(tiny.step()), flush=True)
if sys.argv[1:] == ["audible"]:
    time.sleep(3)  # meanwhile it is sent
