"""HTTP: what is asked, who may ask it, and how errors are answered."""
