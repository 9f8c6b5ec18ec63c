"""Looking at players: what they are active on, what they write, and how far simple rules predict them."""
