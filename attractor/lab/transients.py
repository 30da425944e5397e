"""The command `python -m attractor.lab.transients`, which is `attractor.studies.transients.command`."""

from runpy import run_module

if __name__ == "__main__":
    run_module("attractor.studies.transients.command", run_name="__main__", alter_sys=True)
