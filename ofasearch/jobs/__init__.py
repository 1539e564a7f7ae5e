"""One typed function per command: a frozen request in, events as it goes, a frozen result out."""
