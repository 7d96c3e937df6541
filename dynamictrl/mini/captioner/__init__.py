"""The mini captioner: a trained Qwen2-VL of about a million parameters that says what a marionette clip shows."""
