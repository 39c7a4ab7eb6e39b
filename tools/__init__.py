"""What the project needs to build itself, beside the package."""
