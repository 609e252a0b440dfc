"""Faithfulness: planted reasons and counterfactual histories."""
