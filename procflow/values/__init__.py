"""Values: what steps return, as refs and files, and back."""
