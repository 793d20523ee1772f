"""Loading: a file's text into a tree with positions, and a tree into validated records."""
