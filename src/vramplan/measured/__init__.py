"""The answer against measurements: what people saw, what we say, and how far apart they are."""
