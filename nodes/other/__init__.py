"""Models of no family here, computed with transformers (extra ``transformers``)."""
