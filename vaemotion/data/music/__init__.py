"""Procedural music: cues and labels, scores, MIDI files, and their sound by FluidSynth."""
