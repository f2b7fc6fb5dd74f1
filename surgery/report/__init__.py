"""What was proven, for a terminal, for a machine and as one page: all from one document, a plain dict."""
