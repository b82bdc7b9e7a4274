"""The recommender: SASRec over item embeddings, its loss, its negatives and its ranks."""
