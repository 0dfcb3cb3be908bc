"""What a quantized model's files hold."""

QUANTIZATION_NAME = "quantization.json"
