"""The networks and experiments of the active dendrites papers, run on dendrite_kernels. Command line: dendrite-lab."""
