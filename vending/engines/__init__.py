"""Token engines: one for each way in which meters take credit, chosen by the meter's record."""
