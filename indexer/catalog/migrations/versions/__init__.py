"""Never edit one that was released; add the next, named for its number and its effect."""
