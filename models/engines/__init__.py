"""What computes a trained network when it is served: PyTorch, OpenVINO or ONNX Runtime."""
