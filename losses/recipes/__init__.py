"""The published recipes, one file for each method: data with sources."""
