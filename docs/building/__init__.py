"""What the site needs beyond Sphinx: equations, notebooks, explorers, docstrings."""
