"""Out of the library: servers, ONNX, robots."""
