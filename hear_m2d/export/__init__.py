"""`hear-m2d export`: the model as an ONNX or torch.export graph."""
