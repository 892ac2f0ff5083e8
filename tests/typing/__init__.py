"""Scripts as users write them, checked by mypy in strict mode and by the tests beside this folder."""
