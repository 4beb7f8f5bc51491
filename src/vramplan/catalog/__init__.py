"""The catalogue: models and GPUs as data (`models.txt`, `gpus.json`) and their loaders. It knows names, sizes and sources; no formula.

README.md beside this file says how to add a model or a GPU, and where the data come from.
"""
