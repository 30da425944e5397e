"""Trajectories of networks that store few or many images."""
