"""Inference engines: ONNX Runtime, TensorRT, llama.cpp."""
