"""A network as one file for other programs: ONNX, StableHLO, or a PyTorch state dict."""
