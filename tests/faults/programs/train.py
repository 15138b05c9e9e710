"""Trains some steps and ends: what every fault must leave as it is."""

import sys

from tiny import Tiny

Tiny().train(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
