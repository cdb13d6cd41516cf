"""Made images, a small trained checkpoint and an embedded bucket to show the whole job."""
