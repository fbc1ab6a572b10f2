"""Numbers that quantisation, confidence and a venue need."""
