"""From a mix to hits."""
