"""The recipe behind the menagerie's weights: one module a stage, and the card's figures."""
