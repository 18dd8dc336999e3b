"""Pretrained bases of the Llama family: found, checked, loaded once, with their tokenizers."""
