"""Speed and accuracy as ratios, measured side by side in one run; figures name their hardware."""
