"""Studies: the experiments of `attractor.theory`, each one command, one figure and one page of docs/theory.md."""
