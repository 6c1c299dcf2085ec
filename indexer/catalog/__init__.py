"""What is true: stems, their embeddings, jobs, keys and quotas, in SQL."""
