"""Has secrets where people have them: in words of the command line, in variables, in an exception's text."""

import os
import sys

from tiny import Tiny

Tiny().train(3)
print("given", len(sys.argv), len(os.environ["TRACKER_TOKEN"]))
raise ConnectionError(f"cannot reach postgres://reader:{os.environ['PASSWORD_FOR_TEST']}@db:5432/runs?sslmode=off")
