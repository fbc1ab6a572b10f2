"""The one decoder of media: streams, times, colors and sound of any file, for training and the device alike.

``medium.Medium`` opens a file. The device streams it (``runtime.sources.file``), the loader collects it
(``vaemotion.data.manifest.loader``), so that a model is judged on what the device gives it.
"""
