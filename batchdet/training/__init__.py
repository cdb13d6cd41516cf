"""From labels to weights and to what they are worth: gold, measures, thresholds, the gate. Knows no Ray and no run."""
