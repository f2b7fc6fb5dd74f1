"""Listing this takes the process with it; under another name of architecture it hangs."""

import os
import time


def compilations(arch):
    if arch == "sm90":
        time.sleep(600)
    os._exit(9)
