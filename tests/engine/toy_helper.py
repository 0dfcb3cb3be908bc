"""A helper beside the toy rules, which they import."""

ending = ""
