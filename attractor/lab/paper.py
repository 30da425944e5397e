"""The command `python -m attractor.lab.paper`, which is `attractor.studies.paper.command`."""

from runpy import run_module

if __name__ == "__main__":
    run_module("attractor.studies.paper.command", run_name="__main__", alter_sys=True)
