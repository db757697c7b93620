"""Passes over a window, one idea a file: the maths as pure functions, the pass a thin shell."""
