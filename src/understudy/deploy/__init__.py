"""Deployment of policies: ONNX files, packed weights and CUDA graphs."""
