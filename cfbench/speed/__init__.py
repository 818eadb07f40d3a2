"""How long things take, beside those who do the same; see ``cfbench speed``."""
