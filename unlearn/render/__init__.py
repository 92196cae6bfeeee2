"""Output for people: text tables, fonts, and labelled sheets of pictures."""
