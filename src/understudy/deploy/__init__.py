"""Deployment: ONNX files, packed weights and CUDA graphs."""
