"""Questions that the paper leaves open, asked of a model of your own: small grids that can be gone on with.

- `scores`: many ablations of one model on the same documents, each scored once and kept.
"""
