"""Questions that the paper leaves open, asked of a model of your own: small grids that can be gone on with.

- `constants`: loss as a function of the constant (`loss_curves`); `minima`: where such a curve is lowest.
- `scores`: many ablations of one model on the same documents, each scored once and kept.
- `damage`: what ablations cost, compared in pairs over masks and documents.
- `stability`: how far centers move between collections and corpora.
- `atypical`: what off-zero, multi-modal and skewed neurons cost, beside gaussian-like ones of the same variances.
- `layers`: what every layer and every head costs, center by center.
- `processing`: what TransformerLens' processing of weights makes of an ablation.
- `controls`: every center, learned ones among them, beside what the same learning buys otherwise.
- `predictability`: whether the best constant follows from a neuron's shape.
"""
