"""Launchers: each module has one function an op, which fills the outputs that ops/ allocated."""
