"""Labels of single steps: process supervision, from whoever can tell."""
