"""Training of `pocket`, the small FLUX.2-architecture model that Bitbrush embeds (see README.md)."""
