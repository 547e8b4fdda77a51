"""People's votes on pairs of images: which pairs, the page that shows them, and what the votes come to."""
