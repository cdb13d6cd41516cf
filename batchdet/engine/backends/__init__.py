"""What runs a detector's networks: torch itself, or an exported graph in OpenVINO or ONNX Runtime."""
