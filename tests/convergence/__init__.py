"""Whether both sides come to agree, whatever happened before: random histories, and the rules that judge them."""
