"""Has secrets where people have them: in words of the command line, variables, extras, attributes, an exception."""

import logging
import os
import sys

from tiny import Tiny

import otel_ml

Tiny().train(3)
logging.getLogger("program").warning("signed in", extra={"api_key": os.environ["PASSWORD_FOR_LOG"], "user": "reader"})
with otel_ml.request("signed", password=os.environ["PASSWORD_FOR_SPAN"], user="reader"):
    pass
print("given", len(sys.argv), len(os.environ["TRACKER_TOKEN"]))
raise ConnectionError(f"cannot reach postgres://reader:{os.environ['PASSWORD_FOR_TEST']}@db:5432/runs?sslmode=off")
