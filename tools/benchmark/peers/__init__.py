"""Other libraries that make views, as their own documentation says, to be timed beside ours."""
