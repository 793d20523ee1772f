"""Skills: named capabilities; what they take and return, language models, and those of installed packages."""
