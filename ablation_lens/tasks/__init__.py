"""What is read, and which predictions of it are scored.

- `tasks`: `task_for`; causal and masked language modelling, image classification.
- `plans`: `Batch` and `BatchPlan`, documents and batches fixed before anything runs.
- `batch_sizes`: `batch_size="auto"`, how many documents fit into memory beside a model.
- `given`: `batches_of`, what people hold in their hands as batches; `inputs`: ids, masks and pixels out of it.
- `freezing`: `freeze`, batches of your own as a plan with a digest; `require_disjoint`.
- `known_rows`: rows are known again, however they were batched.
- `padding`, `prompts`: what is padding in batches of your own.
"""
