"""TensorRT engines: built on the device, cached, run as CUDA graphs."""
