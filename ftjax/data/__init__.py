"""Files and data sets -> rows -> tokens -> batches of fixed shapes with masks."""
