"""How spans of a model are found, reached and chained."""
