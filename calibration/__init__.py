"""Numbers that quantization, confidence and a venue need."""
