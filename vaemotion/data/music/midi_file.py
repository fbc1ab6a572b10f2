"""Standard MIDI files of format 1: a tempo track, then one track a channel.

In: a `Score`. Out: the bytes of a ``.mid`` file (MIDI Manufacturers Association, Standard MIDI Files 1.0).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from vaemotion.data.music.score import BASS, CHORDS, MELODY, PERCUSSION, TICKS_A_BEAT, Score

_NAMES = {MELODY: "melody", CHORDS: "chords", BASS: "bass", PERCUSSION: "percussion"}
Event = tuple[int, bytes]  # absolute ticks, message


def microseconds_a_beat(score: Score) -> int:
    """Return the tempo as a MIDI file holds it."""
    return round(60_000_000 / score.tempo_bpm)


def midi_bytes(score: Score) -> bytes:
    """Encode a score; equal scores give equal bytes."""
    tempo = b"\xff\x51\x03" + microseconds_a_beat(score).to_bytes(3, "big")
    meter = b"\xff\x58\x04" + bytes([score.beats_a_bar, 2, 24, 8])  # quarters; 24 clocks a click
    tracks = [_track([(0, tempo), (0, meter)])]
    for channel in sorted({note.channel for note in score.notes}):
        events: list[Event] = [(0, b"\xff\x03" + _counted(_NAMES[channel].encode()))]
        if channel in score.programs:
            events.append((0, bytes([0xC0 | channel, score.programs[channel]])))
        tracks.append(_track([*events, *note_events(score, channel)]))
    return b"MThd" + struct.pack(">IHHH", 6, 1, len(tracks), TICKS_A_BEAT) + b"".join(tracks)


def note_events(score: Score, channel: int) -> list[Event]:
    """Return the note-ons and note-offs of a channel by time; at the same time offs come first."""
    ons = [
        (note.start, bytes([0x90 | channel, note.pitch, note.velocity]))
        for note in score.notes
        if note.channel == channel
    ]
    offs = [
        (note.start + note.length, bytes([0x80 | channel, note.pitch, 64]))
        for note in score.notes
        if note.channel == channel
    ]
    return sorted([*offs, *ons])


def _track(events: Iterable[Event]) -> bytes:
    data, now = b"", 0
    for ticks, message in events:
        data += _variable(ticks - now) + message
        now = ticks
    data += b"\x00\xff\x2f\x00"
    return b"MTrk" + struct.pack(">I", len(data)) + data


def _counted(text: bytes) -> bytes:
    return _variable(len(text)) + text


def _variable(number: int) -> bytes:
    """Encode a number in groups of seven bits, all but the last with the top bit set."""
    groups = [number & 0x7F]
    while number := number >> 7:
        groups.append(0x80 | number & 0x7F)
    return bytes(reversed(groups))
