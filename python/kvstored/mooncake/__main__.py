"""Prints the folder that makes ``mooncake`` mean this package in programs with it in front of their ``PYTHONPATH``."""

from kvstored.mooncake import shim_folder

if __name__ == "__main__":
    print(shim_folder())
