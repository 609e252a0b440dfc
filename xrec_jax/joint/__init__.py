"""Level 4: recommender and explainer trained together, rewarded by recommendation gain."""
