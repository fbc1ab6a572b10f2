"""Files, cameras and microphones as streams on one clock."""
