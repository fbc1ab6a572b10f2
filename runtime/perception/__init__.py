"""Frames and sound become tokens once; tokens become readings."""
