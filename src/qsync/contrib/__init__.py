"""What connects qsync with other libraries, each in a module that needs that library."""
