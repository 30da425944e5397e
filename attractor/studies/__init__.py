"""Studies: the experiments of `attractor.theory`, one command, one figure and one page of text each."""
