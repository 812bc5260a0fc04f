"""What other programs read of finished runs: networks as ONNX and TorchScript, curves for TensorBoard.

Each needs packages that nothing else here needs: `pip install -e '.[export]'`, `pip install -e '.[tensorboard]'`.
"""
