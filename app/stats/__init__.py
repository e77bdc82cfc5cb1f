"""Statistics: plain functions on numpy arrays, each with its source; knows nothing of the rest of the app."""
